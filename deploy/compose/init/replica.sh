#!/bin/bash
# Starts a standby of PRIMARY_URL, which its first start copies. To copy it anew, remove the volume.
set -eu
if [ ! -e "$PGDATA/copied" ]; then
  # What a copy that was interrupted has left: started as it is, it might take writes.
  find "$PGDATA" -mindepth 1 -delete
  pg_basebackup --dbname "$PRIMARY_URL" --pgdata "$PGDATA" --write-recovery-conf --checkpoint fast
  touch "$PGDATA/copied"
fi
chmod 700 "$PGDATA"
exec docker-entrypoint.sh "$@"
