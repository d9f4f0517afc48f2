# shellcheck shell=bash
# What the scripts beside this file share. Sourced, never run.
# shellcheck disable=SC2034 # most variables are for the scripts that source this
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HOLDFAST_CACHE:-$(cd ~ && pwd)/.cache/holdfast}
run=$cache/run            # everything about the running cluster; gone after ./down
net=172.30.0              # this machine is $net.1, the nodes are $net.11, $net.12, …; their pods 10.244.N.0/24
bridge=hf0
kind_name=holdfast
PATH=$cache/bin:$PATH:/usr/sbin:/sbin

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# The cluster that all of this works on: dev (the one made here), kind, or current (whatever KUBECONFIG says).
cluster=${CLUSTER:-dev}
case $cluster in dev | kind | current) ;; *) die "CLUSTER is \"$cluster\"; it must be dev, kind or current" ;; esac

kubeconfig_path() {
  case $cluster in
    dev) echo "$run/admin.conf" ;;
    kind) echo "$cache/kind.conf" ;;
    current) echo "${KUBECONFIG:-$(cd ~ && pwd)/.kube/config}" ;;
  esac
}

kubectl() { command kubectl --kubeconfig="$(kubeconfig_path)" --request-timeout=20s "$@"; }

# One change of the cluster at a time. Started processes do not inherit the lock (see launch).
lock() {
  [ -z "${HOLDFAST_LOCKED:-}" ] || return 0
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock -w 900 9 || die "another script has been changing this cluster for 15 minutes"
  export HOLDFAST_LOCKED=1
}

wait_for() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { say "waited in vain for $what"; return 1; }
    sleep 0.1
  done
}

# --- processes -----------------------------------------------------------------------------------------------
# Each is known by name: cmd/NAME is its command line, NAME.pid its process, log/NAME.log what it said.
# All carry the variable HOLDFAST_CLUSTER, and so do their children: that is how ./down finds every one of them,
# and how a number that was reused for another program since is never taken for ours.

start() { # NAME COMMAND...
  local name=$1
  shift
  mkdir -p "$run/cmd" "$run/log"
  printf '%q ' "$@" >"$run/cmd/$name"
  launch "$name"
}

launch() { # NAME, started before
  local -a command
  eval "command=($(<"$run/cmd/$1"))"
  HOLDFAST_CLUSTER=$run HOLDFAST_LOCKED="" setsid "${command[@]}" >>"$run/log/$1.log" 2>&1 </dev/null 9>&- &
  echo $! >"$run/$1.pid"
  disown $!
}

alive() { # NAME [RUN FOLDER]
  local pid where=${2:-$run}
  pid=$(cat "$where/$1.pid" 2>/dev/null) && grep -qzsxF "HOLDFAST_CLUSTER=$where" "/proc/$pid/environ"
}

# --- loop devices and mounts -----------------------------------------------------------------------------------

# The loop devices of files below a folder. Names are read while their file systems are mounted: afterwards nothing tells whose they are.
loops_below() { # FOLDER
  local file back
  for file in /sys/block/loop*/loop/backing_file; do
    back=$(cat "$file" 2>/dev/null) || continue
    case $back in "$1"/*) file=${file#/sys/block/} && echo "/dev/${file%%/*}" ;; esac
  done
}
mounts_below() { awk -v folder="$1/" 'index($2, folder) == 1 {print $2}' /proc/mounts; } # FOLDER

# --- certificates --------------------------------------------------------------------------------------------

authority() { # FOLDER NAME: a certificate authority, ca.crt and ca.key
  mkdir -p "$1"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" \
    -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$1/ca.key" -out "$1/ca.crt" 2>/dev/null
}

certificate() { # FOLDER NAME SUBJECT [ALTERNATIVE NAMES], signed by the authority of that folder
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout "$1/$2.key" -out "$1/$2.csr" 2>/dev/null
  openssl x509 -req -in "$1/$2.csr" -CA "$1/ca.crt" -CAkey "$1/ca.key" -days 3650 -out "$1/$2.crt" \
    -extfile <(echo "basicConstraints=critical,CA:FALSE"; [ -z "${4:-}" ] || echo "subjectAltName=$4") 2>/dev/null
  rm "$1/$2.csr"
}

# --- images --------------------------------------------------------------------------------------------------

case $(uname -m) in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture=$(uname -m) ;; esac

# Packs one layer as an image archive that containerd, kind, docker and podman all load. An archive is three files
# in a tar: no build tool is needed, no daemon and no root, and the same input gives the same bytes.
pack() { # ARCHIVE NAME LAYER.tar CONFIG, the last as JSON: {"Entrypoint": […], "User": …}
  local work digest
  work=$(mktemp -d "$1.XXXXXX")
  digest=$(sha256sum "$3" | cut -d' ' -f1)
  ln "$3" "$work/layer.tar" 2>/dev/null || cp "$3" "$work/layer.tar"
  printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$architecture" "$4" "$digest" >"$work/config.json"
  printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" >"$work/manifest.json"
  tar --create --file "$1.new" --directory "$work" --owner=0 --group=0 --mtime=@0 manifest.json config.json layer.tar
  rm -r "$work"
  mv "$1.new" "$1"
}
