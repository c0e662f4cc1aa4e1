#!/usr/bin/env bash
# Build a target of the Dockerfile without a container engine, and run what was built: `docker/build.sh [cpu|gpu|training]`.
#
# buildah builds it in a chroot, on a base made by debootstrap where the Dockerfile has one from a registry. It needs
# root and a Debian machine. Where either is missing, or nothing can be downloaded, it says so and ends with 0: no image
# was made, and nothing is wrong with it. Whatever fails after that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-cpu}
suite=trixie

not_here() {
    printf '\n%s\n' "########  NO IMAGE WAS BUILT OR TESTED: $1  ########" >&2
    exit 0
}

[ "$(id -u)" = 0 ] || not_here "this needs root"
if ! { command -v buildah && command -v debootstrap; } >/dev/null; then
    command -v apt-get >/dev/null || not_here "this needs Debian's buildah and debootstrap"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends buildah debootstrap; } \
        >/dev/null || not_here "buildah and debootstrap cannot be installed"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/equipoise-image.XXXXXX")
mkdir -p "$work"/probe/{lower,upper,work,merged}
driver=vfs # copies every layer whole; overlay needs the kernel's leave
layers="lowerdir=$work/probe/lower,upperdir=$work/probe/upper,workdir=$work/probe/work"
if mount -t overlay overlay -o "$layers" "$work/probe/merged" 2>/dev/null; then
    umount "$work/probe/merged"
    driver=overlay
fi
driver=${STORAGE_DRIVER:-$driver}
buildah() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$driver" "$@"; }
clean_up() {
    buildah umount --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean_up EXIT
export BUILDAH_ISOLATION=chroot

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
echo "base: debootstrap $suite from $mirror"
debootstrap --variant=minbase "$suite" "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 ||
    { tail -5 "$work/debootstrap.log" >&2; not_here "debootstrap could not make a base from $mirror"; }
echo force-unsafe-io >"$work/base/etc/dpkg/dpkg.cfg.d/docker-apt-speedup" # as Debian's own images have it
rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
base_size=$(du -sm "$work/base" | cut -f1)
base=$(buildah from scratch)
buildah copy --quiet "$base" "$work/base" / >/dev/null
buildah commit --quiet --rm "$base" localhost/base >/dev/null
rm -rf "$work/base"

# How this machine reaches its mirrors: for single steps of the build, in no layer.
apt-config dump | grep -E '^Acquire::(Check|http|https)' >"$work/apt.conf" || true
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$work/ca.pem"
{
    echo "[global]"
    echo "cert = /run/secrets/ca.pem"
    for key in index-url extra-index-url proxy trusted-host timeout; do
        value=$(python3 -m pip config get "global.$key" 2>/dev/null | tr ' ' '\n' | grep -v '^file:' | tr '\n' ' ' || true)
        [ -z "${value// /}" ] || echo "$key = $value"
    done
} >"$work/pip.conf"

echo "image: $target, storage driver $driver"
buildah build --quiet --layers=false --format docker --file docker/Dockerfile --target "$target" \
    --build-arg BASE=localhost/base --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --secret id=apt.conf,src="$work/apt.conf" --secret id=pip.conf,src="$work/pip.conf" \
    --secret id=ca.pem,src="$work/ca.pem" --tag "localhost/equipoise:$target" . >"$work/build.log" 2>&1 ||
    { tail -40 "$work/build.log" >&2; exit 1; }

container=$(buildah from --pull-never "localhost/equipoise:$target")
root=$(buildah mount "$container")
buildah inspect --type image "localhost/equipoise:$target" >"$work/image.json"
size=$(du -sm "$root" | cut -f1)
echo "built in $SECONDS s: $((size - base_size)) MB beyond the base of $base_size MB"
python3 docker/check_image.py "$root" "$work/image.json" --target "$target" --beyond-base-mb $((size - base_size))
echo "image: $target is good, $SECONDS s in all"
