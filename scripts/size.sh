#!/bin/sh
# What the binaries and the initramfs of both kernels weigh, in bytes, against the limits; fails if one is broken.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
status=0
limit() { # limit NAME FILE BYTES
	n=$(stat -c %s "$2")
	if [ "$n" -le "$3" ]; then verdict=ok; else verdict='TOO BIG'; status=1; fi
	printf '%-28s %9d of %9d  %s\n' "$1" "$n" "$3" "$verdict"
}
stat -c "%9s %n" bin/init bin/init-raw bin/init-full bin/bootcount bin/lifeboat bin/linux-arm64/init bin/linux-arm64/bootcount
bin/lifeboat keys init --out "$dir/keys" >/dev/null
limit /init bin/init 5100000
limit '/init, no boot loader' bin/init-raw 5000000
limit '/init, all of it' bin/init-full 5400000
for kernel in cloud generic; do
	bin/lifeboat initramfs build --config docs/system.conf.example --keyring "$dir/keys/release.keyring.pem" \
		--kernel build/kernel/$kernel --out "$dir/$kernel" >/dev/null
	bin/lifeboat inspect "$dir/$kernel" | grep '^part'
	case $kernel in cloud) most=2200000 ;; *) most=3000000 ;; esac
	limit "initramfs, $kernel kernel" "$dir/$kernel" $most
done
exit $status
