"""``bustseg live``: outlines on a camera or a video in real time.

* :mod:`bustseg.live.stream` reads, segments and draws; a stage that is too slow drops frames, which are counted;
* :mod:`bustseg.live.app` shows the newest picture to any number of browsers.
"""
