# The first process of a machine of the cluster: gives itself a root of its own and then waits,
# taking in orphans. When it ends, the kernel ends every process of its PID namespace, and with the
# last of them go the network namespace and every mount. Runs in new mount, PID, network, UTS and
# IPC namespaces; must never change anything on the host but the machine's own directory.
#
# Arguments: the machine's name, its directory, and `attached` (live as long as standard input) or
# `detached`.
set -eu
umask 022
name=$1
home=$2
life=$3
root=$home/root

# /proc is still the host's here, so this is the process's number on the host.
read -r host_pid rest </proc/self/stat

# Without it, pods of one node reach each other past the rules by which Services work.
[ -e /proc/sys/net/bridge ] || modprobe br_netfilter || {
    echo "the kernel module br_netfilter is missing: modprobe br_netfilter" >&2
    exit 1
}
echo "$name" >/proc/sys/kernel/hostname
mounts=$(cat /proc/self/mounts)
mount --bind / "$root"
# File systems that a person keeps files on: checkouts and caches may be there. Not what holds
# namespaces, whose mounts would keep other people's namespaces alive.
while read -r source target kind rest; do
    case $target in
    / | /proc | /proc/* | /sys | /sys/* | /dev | /dev/* | /run | /run/* | /var/run/* | /var/lib/* | /var/log/* | *\\*) continue ;;
    esac
    case $kind:$target in
    ext[234]:* | xfs:* | btrfs:* | zfs:* | f2fs:* | overlay:* | virtiofs:* | 9p:* | tmpfs:/tmp)
        if [ -d "$target" ]; then mount --bind "$target" "$root$target"; fi
        ;;
    esac
done <<END
$mounts
END

mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/netns" "$root/run/lock" "$root/run/machine"
for private in etc var-lib var-log opt; do
    mount --bind "$home/$private" "$root/$(echo "$private" | tr - /)"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"

mkdir -p "$root/run/host-root"
cd "$root"
pivot_root . run/host-root
umount -l /run/host-root
rmdir /run/host-root
# What a kubelet expects of its machine: mounts propagate into pods, and back where they ask for it.
mount --make-rshared /

ip link set lo up
for setting in ipv4/ip_forward=1 ipv6/conf/all/forwarding=1 ipv6/conf/all/accept_dad=0 \
    ipv6/conf/default/accept_dad=0 ipv4/conf/all/rp_filter=0 ipv4/conf/default/rp_filter=0 \
    bridge/bridge-nf-call-iptables=1 bridge/bridge-nf-call-ip6tables=1; do
    echo "${setting#*=}" >"/proc/sys/net/${setting%=*}"
done

echo "$host_pid" >"$home/pid.new"
mv "$home/pid.new" "$home/pid"
if [ "$life" = attached ]; then
    cat >/dev/null
else
    while :; do sleep 86400; done
fi
