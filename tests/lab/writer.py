"""Writes to an image for ever, and counts its writes in a file. See `writer`.

Usage: writer.py CEPH_CONF USER IMAGE-SPEC COUNT-FILE
"""

import os
import signal
import sys
import time

import rados
import rbd

conf, user, spec, count_file = sys.argv[1:]
*where, name = spec.split("/")
pool = where[0] if where else "rbd"
namespace = where[1] if len(where) > 1 else ""

stopping = False


def stop(*_):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)

with rados.Rados(conffile=conf, rados_id=user) as cluster, cluster.open_ioctx(pool) as ioctx:
    ioctx.set_namespace(namespace)
    with rbd.Image(ioctx, name) as image:
        blocks = max(1, min(image.size(), 64 << 20) // 4096)
        locks = image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK
        count = 0
        while not stopping:
            # The first write takes the lock; a write after the lock was handed over takes it back.
            image.write(f"{count:<16}".encode() * 256, (count % blocks) * 4096)
            if count == 0 and locks and not image.is_exclusive_lock_owner():
                continue
            count += 1
            # Renamed into place: whoever reads it never sees half a number.
            with open(count_file + ".new", "w") as file:
                file.write(str(count))
            os.rename(count_file + ".new", count_file)
            time.sleep(0.02)
