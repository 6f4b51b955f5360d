#!/bin/bash
# At the first start of a server: whoever has its password may copy it. Standbys and `terrace backup` do.
set -eu
echo 'host replication all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
