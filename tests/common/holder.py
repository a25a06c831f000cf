"""Has a device open and writes to it ten times a second, as a running guest does. See kernel.rs.

Usage: holder.py DEVICE [ARGUMENTS that only others look at]
Counts its writes in /run/lab-holder.PID; what failed stands there too. It goes on, more slowly: QEMU does not end
either.
"""

import mmap
import os
import sys
import time

device = sys.argv[1]
block = mmap.mmap(-1, 4096)
fd = os.open(device, os.O_RDWR | os.O_DIRECT)
count_file = f"/run/lab-holder.{os.getpid()}"
count = 0
while True:
    pause = 0.1
    try:
        os.pwrite(fd, block, 4096 * (count % 16))
        count += 1
        words = str(count)
    except OSError as error:
        words = f"{count} failed: {error}"
        pause = 1
    with open(count_file + ".new", "w") as file:
        file.write(words)
    os.rename(count_file + ".new", count_file)
    time.sleep(pause)
