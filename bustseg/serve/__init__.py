"""``bustseg serve``: a web page and an HTTP interface for programs, from one process and without Internet access.

* :mod:`bustseg.serve.app` assembles the parts;
* :mod:`bustseg.serve.guard` checks who may send requests, and how large and slow they may be;
* :mod:`bustseg.serve.batching` combines the images of all clients into batches;
* :mod:`bustseg.serve.uploads` turns uploaded bytes into images, and keeps the page's files for a while;
* :mod:`bustseg.serve.corrections` stores annotators' corrections in a folder that training can read.
"""
