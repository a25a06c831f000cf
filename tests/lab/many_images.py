"""Makes many images in one process. Usage: many_images.py CEPH_CONF POOL FIRST-VMID GUESTS DISKS-EACH

The images are vm-VMID-disk-N, of 8 MiB, with Ceph's default features.
"""

import sys

import rados
import rbd

conf, pool, *numbers = sys.argv[1:]
first, guests, disks = map(int, numbers)
features = 61
with rados.Rados(conffile=conf, rados_id="admin") as cluster, cluster.open_ioctx(pool) as ioctx:
    for vmid in range(first, first + guests):
        for disk in range(disks):
            rbd.RBD().create(ioctx, f"vm-{vmid}-disk-{disk}", 8 << 20, old_format=False, features=features)
