"""``bustseg serve``: a page in the browser and an HTTP interface for programs, from one process and without a network.

* :mod:`bustseg.serve.app` puts the parts together;
* :mod:`bustseg.serve.guard` decides who may ask at all, and how large and how slow a request may be;
* :mod:`bustseg.serve.batching` joins the images of all clients into batches;
* :mod:`bustseg.serve.uploads` turns bytes from outside into images, and keeps a page's files for a while;
* :mod:`bustseg.serve.corrections` keeps what annotators correct, in a folder that training reads.
"""
