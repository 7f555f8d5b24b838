"""``bustseg node``: a DICOM node that takes ultrasound images and sends outlines on.

* :mod:`bustseg.node.spool` is the queue on disk, through which everything goes;
* :mod:`bustseg.node.node` receives, segments and sends;
* :mod:`bustseg.node.capture` makes the secondary captures.
"""
