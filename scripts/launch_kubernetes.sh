#!/usr/bin/env bash
# Prints an indexed Job and the headless Service that its pods meet by; pod 0 coordinates:
#     NAME=name IMAGE=registry/vrrl PODS=4 GPUS=8 CLAIM=shared scripts/launch_kubernetes.sh \
#         train RECIPE mesh.fsdp=-1 run_dir=/shared/runs/name | kubectl apply -f -
#     kubectl logs -f job/name          kubectl delete job/name service/name
# NAME       of Job and Service (vrrl)
# IMAGE      holds the repository as working directory and the command `vrrl`
# PODS       how many, one process each (2)
# GPUS       of each pod (8); RESOURCE is what the cluster calls them (nvidia.com/gpu)
# CLAIM      a PersistentVolumeClaim (ReadWriteMany), mounted at /shared, for run_dir and weights
# RESTARTS   how many lost pods are replaced in all (100)
# GRACE      seconds between SIGTERM and SIGKILL: a step and a checkpoint fit in (600)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"
name="${NAME:-vrrl}" pods="${PODS:-2}" gpus="${GPUS:-8}" port=8476
resource="${RESOURCE:-nvidia.com/gpu}"
: "${IMAGE:?the container image}" "${CLAIM:?a claim for what all pods share}"
run_dir="$(run_dir_of "$@")" || exit 1

# Arguments as a YAML list of quoted strings.
arguments() {
  local argument
  for argument in "$@"; do
    printf "            - '%s'\n" "${argument//\'/\'\'}"
  done
}

cat <<EOF
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  # Pods find one another before they are ready.
  publishNotReadyAddresses: true
  selector:
    job-name: $name
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $pods
  parallelism: $pods
  backoffLimit: ${RESTARTS:-100}
  podFailurePolicy:
    rules:
      # Errors that would come again end the job; every other end of a pod is followed by a new one.
      - action: FailJob
        onExitCodes:
          operator: In
          values: [1, 2]
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
  template:
    metadata:
      labels:
        job-name: $name
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: ${GRACE:-600}
      containers:
        - name: vrrl
          image: $IMAGE
          command:
            - bash
            - -c
            # A pod that takes a lost one's place goes on; exec lets vrrl have the signals.
            - |
              resume=()
              [[ -f "\$RUN_DIR/config.yaml" ]] && resume=(--resume)
              export VRRL_PROCESS_ID="\$JOB_COMPLETION_INDEX"
              exec vrrl "\$@" "\${resume[@]}"
            - vrrl
          args:
$(arguments "$@")
          env:
            - {name: RUN_DIR, value: '$run_dir'}
            - {name: PYTHONHASHSEED, value: '0'}
            - {name: VRRL_COORDINATOR, value: '$name-0.$name:$port'}
            - {name: VRRL_PROCESSES, value: '$pods'}
          ports:
            - containerPort: $port
          resources:
            limits:
              $resource: $gpus
          volumeMounts:
            - {name: shared, mountPath: /shared}
            # Processes and devices of a pod talk through shared memory.
            - {name: memory, mountPath: /dev/shm}
      volumes:
        - name: shared
          persistentVolumeClaim:
            claimName: $CLAIM
        - name: memory
          emptyDir:
            medium: Memory
EOF
