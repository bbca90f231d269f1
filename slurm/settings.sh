# shellcheck shell=bash
# The settings of slurm/site.sh and of the environment, checked: one that is misspelt or cannot be read is refused by name.
# slurm/job.sh and slurm/submit.py source it.
SETTINGS="UNIX_ROOT UNIX_CONFIG UNIX_CONTAINER UNIX_VENV UNIX_MOUNTS UNIX_WORK UNIX_DEVICE UNIX_RANKS_PER_NODE
  UNIX_INTERFACE UNIX_MIN_DISK UNIX_MIN_BANDWIDTH UNIX_MAX_CLOCK UNIX_RESTARTS UNIX_WAIT"
NOT_TYPED="UNIX_LOCAL_RANKS UNIX_RUN_ATTEMPT"  # slurm/job.sh sets them for ranks

refuse() { echo "error: $*" >&2; exit 2; }

# The setting that a misspelt name is nearest to: the one with the longest common beginning, of letters and digits.
meant() {
  local name common best=0 found='' wrong=${1//_/}
  for name in $SETTINGS; do
    for ((common = 0; common < ${#wrong}; common++)); do
      local plain=${name//_/}
      [ "${wrong:common:1}" = "${plain:common:1}" ] || break
    done
    if [ "$common" -gt "$best" ]; then best=$common found=$name; fi
  done
  [ "$best" -lt 6 ] || echo " (did you mean $found?)"  # 4 letters are those of UNIX
}

number() {  # NAME PATTERN WORDS: refuse a value that is no number of this kind
  [[ ${!1} =~ ^($2)$ ]] || refuse "$1 is '${!1}': write $3, in slurm/site.sh or in the environment of sbatch"
}

check_settings() {
  local name whole='[1-9][0-9]{0,8}' decimal='[0-9]{1,9}(\.[0-9]*)?'
  for name in $(compgen -v UNIX_); do
    [[ " ${SETTINGS//$'\n'/ } $NOT_TYPED " == *" $name "* ]] || refuse "$name is no setting of slurm/site.sh$(meant "$name"):" \
      "correct or unset it; docs/cluster.md has the settings"
  done
  for name in $SETTINGS; do
    [ "$name" = UNIX_CONFIG ] || [ -n "${!name+set}" ] || refuse "slurm/site.sh does not set $name: restore its line"
  done
  case $UNIX_DEVICE in gpu | cpu) ;; *) refuse "UNIX_DEVICE is '$UNIX_DEVICE': write gpu or cpu" ;; esac
  for name in UNIX_MIN_DISK UNIX_MIN_BANDWIDTH UNIX_MAX_CLOCK; do number "$name" "$decimal" "a number, 0 or more"; done
  number UNIX_RANKS_PER_NODE "|$whole" "a whole number, 1 or more, or leave it empty for a node's GPUs"
  number UNIX_RESTARTS "$whole" "a whole number, 1 or more"
  number UNIX_WAIT "$whole" "a whole number of seconds, 1 or more"
  [ -d "$UNIX_WORK" ] || refuse "UNIX_WORK is '$UNIX_WORK', which is no folder here: make it, or correct slurm/site.sh"
}

bash -n "$UNIX_ROOT/slurm/site.sh" 2>/dev/null || refuse "$UNIX_ROOT/slurm/site.sh cannot be read: bash -n slurm/site.sh shows where"
set -a  # settings are for every rank
# shellcheck source=slurm/site.sh
. "$UNIX_ROOT/slurm/site.sh"
set +a
check_settings
UNIX_WORK=$(realpath "$UNIX_WORK") UNIX_VENV=$(realpath -ms "$UNIX_VENV")  # what runs on a node is in another folder
