#!/usr/bin/env bash
# A real SLURM on this machine: one controller and two nodes, n1 and n2, as root and without systemd.
#   tests/slurm.sh install   the Debian or Ubuntu packages
#   tests/slurm.sh up        starts munge, slurmctld and the two slurmd; does nothing where a SLURM answers already
#   tests/slurm.sh down      stops what `up` started, and nothing else
set -euo pipefail
CONF=/etc/slurm/slurm.conf
STATE=/var/lib/block-shock-slurm
MARK="# written by Block-Shock's tests/slurm.sh"

say() { echo "slurm: $*" >&2; }
answers() { command -v sinfo >/dev/null && timeout 20 sinfo >/dev/null 2>&1; }
idle() { [ "$(sinfo --noheader --Node --states=idle,mixed,allocated 2>/dev/null | wc -l)" -ge 2 ]; }
ours() { [ -f "$CONF" ] && grep -qF "$MARK" "$CONF"; }
as_root() { [ "$(id -u)" = 0 ] || { say "$1 needs root"; exit 1; }; }

install() {
  answers && return
  as_root install
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

configure() {
  local host; host=$(hostname -s)
  mkdir -p "$(dirname "$CONF")" "$STATE"
  cat >"$CONF" <<END
$MARK
ClusterName=block-shock
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
# A requeued job starts over when its credential has expired, which takes two minutes by default.
AuthInfo=cred_expire=15
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmUser=root
AccountingStorageType=accounting_storage/none
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.%n.pid
SlurmdSpoolDir=$STATE/spool.%n
StateSaveLocation=$STATE/state
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.%n.log
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=4
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=4
PartitionName=try Nodes=n1,n2 Default=YES State=UP OverSubscribe=NO
END
}

start_munge() {
  munge -n >/dev/null 2>&1 && return
  mkdir -p /run/munge /etc/munge /var/log/munge /var/lib/munge
  [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
  chown -R munge: /run/munge /etc/munge /var/log/munge /var/lib/munge
  chmod 400 /etc/munge/munge.key
  chmod 755 /run/munge
  runuser -u munge -- munged --force
}

up() {
  answers && { say "a controller answers already, nothing to do"; return; }
  command -v slurmctld >/dev/null || { say "no slurmctld here: tests/slurm.sh install, or apt-get install slurm-wlm munge"; exit 1; }
  if [ -f "$CONF" ] && ! ours; then say "$CONF is not ours and its controller does not answer: left alone"; exit 1; fi
  as_root up
  configure
  start_munge
  mkdir -p "$STATE/state" "$STATE/spool.n1" "$STATE/spool.n2"
  slurmctld
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 100); do idle && { say "up: $(sinfo --noheader)"; return; }; sleep 0.3; done
  say "the nodes did not come up; logs are in $STATE"
  exit 1
}

down() {
  ours || { say "nothing of ours runs here"; return; }
  as_root down
  for name in slurmd.n1 slurmd.n2 slurmctld; do
    if [ -f "$STATE/$name.pid" ]; then kill "$(cat "$STATE/$name.pid")" 2>/dev/null || true; fi
  done
  rm -f "$CONF"
}

case "${1:-}" in
  install | up | down) "$1" ;;
  *) sed -n 2,5p "$0"; exit 2 ;;
esac
