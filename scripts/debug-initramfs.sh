#!/bin/sh
# debug-initramfs.sh OUT.cpio FLAGS...: an initramfs for developers, with a shell and u-root's commands beside our /init
# (docs/u-root.md). FLAGS are those of `lifeboat initramfs build`, without --out and --init. UROOT is the version, COMMANDS
# which of cmds/core.
set -eu
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
out=$(realpath -m "$1"); shift
version=${UROOT:-latest}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CGO_ENABLED=0 GOFLAGS=
go build -tags debug -trimpath -ldflags='-s -w' -o "$dir/init" ./cmd/init
go build -trimpath -o "$dir/lifeboat" ./cmd/lifeboat
"$dir/lifeboat" initramfs build --init "$dir/init" --out "$dir/base.cpio" "$@"
src=$(cd "$dir" && go mod download -json "github.com/u-root/u-root@$version" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
GOBIN="$dir" go install "github.com/u-root/u-root@$version"
cd "$src"
set --
for c in ${COMMANDS:-gosh ls cat cp dd df dmesg echo find grep head hexdump lsmod mount ps tail umount}; do
	set -- "$@" "./cmds/core/$c"
done
# Our /init stays the init (-useinit, no link of u-root's own); /bin/sh is u-root's.
"$dir/u-root" -base "$dir/base.cpio" -useinit -initcmd= -defaultsh gosh -o "$out" "$@"
