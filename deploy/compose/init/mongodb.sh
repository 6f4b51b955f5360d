#!/bin/bash
# MongoDB wants a key in common of the members of a set that asks for passwords. A set of one needs none that
# lasts; when you add members, give all of them one file.
set -eu
head -c 96 /dev/urandom | base64 --wrap 0 >/tmp/keyfile
chmod 400 /tmp/keyfile
chown mongodb:mongodb /tmp/keyfile
exec docker-entrypoint.sh "$@"
