#!/bin/sh
# Installs, reinstalls, removes and purges a package in a copy of this system that vanishes at the end. Needs root.
# `cargo xtask test` runs it: test.sh PACKAGE
set -eu

if [ "${2-}" = "" ]; then
    copy=$(mktemp -d)
    status=0
    unshare --mount "$0" "$(realpath "$1")" "$copy" || status=$?
    rmdir "$copy"
    exit "$status"
fi

copy=$2
mount -t tmpfs tmpfs "$copy"
for directory in etc usr var; do
    mkdir "$copy/$directory" "$copy/$directory.work"
    mount -t overlay overlay -o "lowerdir=/$directory,upperdir=$copy/$directory,workdir=$copy/$directory.work" "/$directory"
done
mount -t tmpfs tmpfs /run

# Pages of other packages need not be indexed again.
dpkg() { command dpkg --no-triggers "$@"; }

expect() {
    [ "$2" = "$3" ] || { echo "$1: expected \`$3\`, got \`$2\`" >&2; exit 1; }
}

dpkg --install "$1"
id evener >/dev/null
expect "owner of the configuration" "$(stat -c '%a %U %G' /etc/evener /etc/evener/evener.lua | tr '\n' ' ')" \
    "750 root evener 640 root evener "
evener check --strict
# The user of the service can read the configuration.
setpriv --reuid evener --regid evener --clear-groups /usr/bin/evener check /etc/evener/evener.lua
zcat /usr/share/man/man5/evener.lua.5.gz | grep -q "pool"

echo "-- changed" >> /etc/evener/evener.lua
dpkg --install "$1"
expect "the changed configuration" "$(tail -n 1 /etc/evener/evener.lua)" "-- changed"
expect "mode after an upgrade" "$(stat -c %a /etc/evener/evener.lua)" 640

dpkg --remove evener
expect "the configuration after the removal" "$(ls /etc/evener)" evener.lua
mkdir -p /var/lib/evener
dpkg --purge evener
[ ! -e /etc/evener ] && [ ! -e /var/lib/evener ] && [ ! -e /usr/bin/evener ]
id evener >/dev/null
