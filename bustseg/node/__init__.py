"""``bustseg node``: a DICOM node that receives ultrasound images and sends outlines on.

* :mod:`bustseg.node.spool` is the queue on disk;
* :mod:`bustseg.node.node` receives, segments and sends;
* :mod:`bustseg.node.capture` creates the secondary captures.
"""
