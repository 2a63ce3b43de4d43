#!/bin/sh
# Brings a Debian 12 machine to where every test and the demo can run: packages with tools, and in build/
# what must not be installed: the kernels of the virtual device and the peers that ship services.
# Each part looks first whether it is already there, so a second run takes a moment.
set -eu
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

tools='qemu-system-x86 squashfs-tools erofs-utils e2fsprogs dosfstools exfatprogs mtools gdisk fdisk kmod
	chromium fonts-dejavu-core rauc cryptsetup-bin openssl cpio zstd xz-utils lz4 mmdebstrap ca-certificates
	grub-common grub-pc-bin grub-efi-amd64-bin libubootenv-tool u-boot-tools efibootmgr dbus-daemon opensc softhsm2
	dt-utils device-tree-compiler gcc libc6-dev'

mkdir -p build
exec 9>build/setup.lock
if command -v flock >/dev/null; then flock 9; fi

say() { echo "setup: $*"; }
fail() { say "$*" >&2; exit 1; }
try() { # a mirror that stumbles gets three more chances
	for pause in 2 10 30 0; do
		"$@" && return 0
		[ "$pause" = 0 ] || sleep "$pause"
	done
	fail "failed: $*"
}
apt() { try apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" </dev/null 9>&-; }

# lists makes the package lists fresh, once and only if something is to be downloaded.
lists_fresh=
lists() {
	[ -z "$lists_fresh" ] || return 0
	command -v apt-get >/dev/null || fail "needs a Debian or Ubuntu machine (apt-get not found)"
	[ "$(id -u)" = 0 ] || fail "needs root to install packages: sudo make setup"
	say "package lists"
	apt update
	lists_fresh=yes
}

missing=
for package in $tools; do
	case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) in
	ii*) ;;
	*) missing="$missing $package" ;;
	esac
done
if [ -n "$missing" ]; then
	lists
	say "installing$missing"
	# shellcheck disable=SC2086 # a list
	apt install -y --no-install-recommends $missing >/dev/null
fi

# unpack DIR PACKAGE...: the packages' files below DIR, complete or not at all.
unpack() {
	dir=$1
	shift
	for deb in build/deb/*.deb; do
		[ -e "$deb" ] || fail "nothing was downloaded for $dir"
		dpkg-deb -x "$deb" "$dir"
	done
	rm -rf build/deb
}
# fetch: apt-get download as root drops to a user who may not write here; a world-writable folder suits both.
fetch() {
	rm -rf build/deb
	mkdir -p build/deb
	chmod 777 build/deb
	(cd build/deb && apt download "$@")
}

# kernel NAME METAPACKAGE
kernel() {
	[ ! -e "build/kernel/$1/vmlinuz" ] || return 0
	lists
	package=$(apt-cache depends --important "$2" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$package" ] || fail "$2 names no kernel"
	say "kernel $package"
	fetch "$package"
	rm -rf build/kernel/"$1".part build/kernel/"$1"
	mkdir -p build/kernel/"$1".part
	unpack build/kernel/"$1".part
	(
		cd "build/kernel/$1.part"
		release=$(ls lib/modules)
		depmod -b . "$release"
		ln -s "boot/vmlinuz-$release" vmlinuz
	)
	mv "build/kernel/$1.part" "build/kernel/$1"
}
kernel cloud linux-image-cloud-amd64
kernel generic linux-image-amd64

# The peers that lifeboat is compared with ship services that would start here: unpacked only, with those
# libraries that this machine lacks. Run with LD_LIBRARY_PATH=build/peers/usr/lib/ARCH-linux-gnu.
# busybox and dmsetup are what the bench puts a simple initramfs together from.
if [ ! -e build/peers/usr/bin/swupdate ] || [ ! -e build/peers/bin/busybox ]; then
	peers='rauc-service swupdate busybox-static dmsetup'
	lists
	say "peers $peers"
	rm -rf build/deb build/peers.part
	mkdir -p build/deb/partial build/peers.part
	# shellcheck disable=SC2086 # a list
	fetch $peers
	mkdir -p build/deb/partial
	# shellcheck disable=SC2086
	apt install -y --no-install-recommends --download-only -o "Dir::Cache::archives=$PWD/build/deb" $peers
	unpack build/peers.part
	rm -rf build/peers
	mv build/peers.part build/peers
fi
peer=$(LD_LIBRARY_PATH=$(echo build/peers/usr/lib/*-linux-gnu) build/peers/usr/bin/swupdate --help 2>&1) ||
	fail "swupdate does not run: $peer"

# Boot loaders and firmware that the virtual device starts: unpacked only, this machine keeps its own.
if [ ! -e build/loaders/usr/lib/u-boot/qemu-x86/u-boot.rom ] || [ ! -e build/loaders/lib/systemd/systemd-bless-boot ]; then
	loaders='u-boot-qemu ovmf systemd-boot-efi systemd-boot libsystemd-shared'
	lists
	say "loaders $loaders"
	# shellcheck disable=SC2086 # a list
	fetch $loaders
	rm -rf build/loaders.part
	mkdir -p build/loaders.part
	unpack build/loaders.part
	rm -rf build/loaders
	mv build/loaders.part build/loaders
fi
say "ready"
