"""``bustseg live``: a camera or a video with the outline on it, as it comes.

* :mod:`bustseg.live.stream` reads, segments and draws; whatever is too slow drops frames and counts them;
* :mod:`bustseg.live.app` shows the newest picture to any number of browsers.
"""
