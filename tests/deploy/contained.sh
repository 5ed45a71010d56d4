#!/bin/sh
# unshare --mount sh contained.sh PREFIX PYTHON COMMAND...: runs a command as a container of the image would, as far as the
# kernel alone can do it. Its root file system is read-only and has the system's libraries, the Python in PYTHON
# and what is installed in PREFIX, each where it is outside, and nothing else: no checkout, no home. It is process 1, runs as
# user 10001 without any capability, and may write to an empty /tmp. The network is the caller's. Needs root, util-linux.
#
# The mounts are private to this process (unshare --mount) and end with it.
set -eu
umask 022
prefix=$1 python=$2
shift 2
root=/mnt

mount -t tmpfs -o mode=755 tmpfs "$root"
for path in /bin /lib /lib64 /usr /etc /sys "$python" "$prefix"; do
  if [ -L "$path" ]; then
    cp -a "$path" "$root$path" # /bin is a link to usr/bin on most systems
  elif [ -e "$path" ]; then
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
  fi
done
mkdir "$root/dev" "$root/proc" "$root/tmp"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -o remount,ro "$root"

# The last option and not unshare's --kill-child: the change of user would forget that.
exec unshare --pid --fork --root="$root" --wd=/ --mount-proc \
  setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
  --pdeathsig=KILL -- "$@"
