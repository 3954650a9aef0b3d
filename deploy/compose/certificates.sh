#!/usr/bin/env bash
# Makes an authority of your own and certificates for the gateway (localhost and the names given) and for Redis, for
# deploy/compose/tls.yml. Needs openssl. Clients trust gateway/ca.crt: curl --cacert deploy/compose/certificates/gateway/ca.crt
#   certificates.sh [NAME...]
set -euo pipefail
folder=${GALLEY_CERTIFICATES:-$(dirname "$0")/certificates}
days=825

# Others on this machine cannot enter it; users of containers can read what is mounted from below it
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
if [ ! -f authority.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=Galley of $(hostname)" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout authority.key -out authority.crt 2>/dev/null
fi

certificate() { # FOLDER NAME...
    local into=$1 names="" name
    shift
    for name in "$@"; do
        if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then
            names+=",IP:$name"
        else
            names+=",DNS:$name"
        fi
    done
    mkdir -p "$into"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$into/tls.key.new" \
        -out "$into/request" 2>/dev/null
    openssl x509 -req -in "$into/request" -CA authority.crt -CAkey authority.key -CAcreateserial -days "$days" \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "${names#,}") -out "$into/tls.crt.new" 2>/dev/null
    rm "$into/request"
    cp authority.crt "$into/ca.crt"
    chmod 644 "$into"/*
    chmod 755 "$into"
    mv "$into/tls.key.new" "$into/tls.key"
    mv "$into/tls.crt.new" "$into/tls.crt"
}

certificate gateway localhost 127.0.0.1 ::1 gateway "$@"
certificate redis redis localhost 127.0.0.1
echo "certificates for localhost${*:+ $*} and redis are in $folder"
