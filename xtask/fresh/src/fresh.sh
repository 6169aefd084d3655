# The first process of a machine that has nothing yet: makes the directory $1 the root of a mount
# namespace that it has for itself, and becomes the command that follows. Everything ends with it.
set -eu
root=$1
shift
rust=$1 # where the toolchain is, to be seen read-only at /opt/rust
go=$2   # the same of Go at /usr/local/go; empty if there is none
shift 2

mount --bind "$root" "$root"
mkdir -p "$root/opt/rust" "$root/old"
mount --bind "$rust" "$root/opt/rust"
mount -o remount,bind,ro "$root/opt/rust"
if [ -n "$go" ]; then
    mkdir -p "$root/usr/local/go"
    mount --bind "$go" "$root/usr/local/go"
    mount -o remount,bind,ro "$root/usr/local/go"
fi
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
# Not what the host has pinned there.
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"

cd "$root"
pivot_root . old
umount -l /old
cd /root/netpol
exec "$@"
