#!/usr/bin/env bash
# One share of the scans of a list, as a task of a Slurm array or a pod of an indexed Kubernetes Job does it:
#
#     sbatch --array=0-19 docs/scale/share.sh scans.txt masks 20 [OPTION of parotid-seg infer ...]
#
# scans.txt has a scan a line: a NIfTI file, or a folder of one study. Share 3 of 20 takes lines 4, 24, 44 ...; its
# masks go to masks/3, because a folder has one writer. How many shares there are is told here and not by Slurm, whose
# count of tasks is another when only some are sent again (--array=3,7): shares must stay the same to be resumed.
#
# PAROTID_SEG is how to call it if it is not installed: PAROTID_SEG="apptainer run --bind /data parotid-seg.sif".
#
#SBATCH --job-name=parotid-seg
#SBATCH --output=parotid-seg-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --time=04:00:00
set -euo pipefail

if (($# < 3)); then
    echo "usage: share.sh LIST OUT SHARES [OPTION...]" >&2
    exit 1
fi
list=$1 out=$2 shares=$3 options=("${@:4}")
share=${SLURM_ARRAY_TASK_ID:-${JOB_COMPLETION_INDEX:?neither Slurm nor Kubernetes tells which share this is}}
if ((share >= shares)); then
    echo "share $share: found $shares shares, expected them to be counted from 0" >&2
    exit 1
fi

mapfile -t lines < "$list"
scans=()
for ((line = share; line < ${#lines[@]}; line += shares)); do
    scan=${lines[line]%$'\r'} # a list from Windows
    if [[ -n $scan ]]; then
        scans+=("$scan")
    fi
done
if ((${#scans[@]} == 0)); then
    echo "share $share: no scans"
    exit
fi
read -ra command <<< "${PAROTID_SEG:-parotid-seg}"
exec "${command[@]}" infer --out "$out/$share" ${options[@]+"${options[@]}"} -- "${scans[@]}"
