#!/bin/sh
# Makes a Debian package from a built program:
#   deploy/debian/build.sh PROGRAM VERSION DIRECTORY
# writes DIRECTORY/accountledger_VERSION_ARCH.deb. It needs dpkg-deb.
set -eu
program=$1 dir=$3
here=$(dirname "$0")/..

# Debian's versions start with a digit. A version that is not a release sorts first.
version=$(printf %s "${2#v}" | tr -- '-_' '+.')
case $version in [0-9]*) ;; *) version=0~$version ;; esac
arch=$(dpkg --print-architecture)
libc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2) # the libc that the program is linked with

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
install -D -m 755 "$program" "$root/usr/bin/accountledger"
install -D -m 644 "$here/systemd/accountledger.service" "$root/usr/lib/systemd/system/accountledger.service"
install -D -m 644 "$here/systemd/config.yaml" "$root/etc/accountledger/config.yaml"
doc=$root/usr/share/doc/accountledger
for file in docs/operation.md deploy/prometheus/rules.yml deploy/grafana/accountledger.json; do
	install -D -m 644 "$here/../$file" "$doc/${file##*/}"
done
install -D -m 644 "$here/../LICENSE" "$doc/copyright"
mkdir "$root/DEBIAN"
for script in postinst prerm postrm; do
	install -m 755 "$here/debian/$script" "$root/DEBIAN/$script"
done
echo /etc/accountledger/config.yaml >"$root/DEBIAN/conffiles"
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@LIBC@/$libc/" \
	-e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$root" | cut -f1)/" "$here/debian/control" >"$root/DEBIAN/control"
mkdir -p "$dir"
dpkg-deb -Zgzip --root-owner-group --build "$root" "$dir/accountledger_${version}_$arch.deb"
