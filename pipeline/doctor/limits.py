"""How long the doctor waits, in seconds."""

ALL = 55.0
DEVICE, REACH, FOLDER, SUMS, DATA, WEB = 25.0, 20.0, 8.0, 20.0, 12.0, 8.0  # for each part
GLANCE = 2.0  # to see that prepared data are there, where to check them takes too long
SEEN = 5.0  # for a file to be seen by another machine
LINGER = 10.0  # for which a process leaves time to others, that it could not meet, for their own words
GONE = 3.0  # for the others to have heard the end
SKEW = 2.0  # by which clocks may differ
