#!/usr/bin/env bash
# Runs beside the ranks on another node than the batch script. Where the first node of a job with --no-kill is lost, Slurm
# keeps the job running on the others, without a script: it would do nothing until its time is over. This asks for it to
# be queued again.
trap '' USR1  # which is for the ranks
while sleep "${1:-30}"; do
  shown=$(timeout 30 scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null) || continue
  first=$(sed -n 's/.* BatchHost=\([^ ]*\).*/\1/p' <<< "$shown")
  left=$(scontrol show hostnames "$(sed -n 's/.* NodeList=\([^ ]*\).*/\1/p' <<< "$shown")")
  if [ -n "$first" ] && ! grep -qxF "$first" <<< "$left"; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
done
