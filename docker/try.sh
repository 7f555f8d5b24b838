#!/usr/bin/env bash
# Builds the images, starts compose.yaml, trains, tests and sweeps in it, and kills services on the way. Not part of CI,
# since it needs a Docker engine and minutes: docs/how-to/run-on-a-server.md, "Try it all".
#
#   docker/try.sh [all | base | build | up | fit | outage | stop | sweep | ui | sizes | down] ...
#
# Settings, all by environment:
#   BASE            hub: base images are pulled as usual; debian: made here by debootstrap, which needs root, for a machine without
#                   Docker Hub (default hub)
#   DEBIAN_MIRROR   for BASE=debian (default: debootstrap's own)
#   CA_BUNDLE       for BASE=debian: file with certificate authorities that replaces the stand-ins' own, behind such a proxy
#   BUILD_NETWORK   network of the builds, such as host (default: the engine's)
#   TORCH_INDEX, PIP_INDEX_URL, PIP_CERT, EXTRAS, CPUS, MLFLOW_PORT   as in .env.example
set -euo pipefail

BASE=${BASE:-hub}
export TORCH_INDEX=${TORCH_INDEX:-} CPUS=${CPUS:-1} MLFLOW_PORT=${MLFLOW_PORT:-5055}
here=$(cd "$(dirname "$0")" && pwd)
work=${TRY_FOLDER:-${TMPDIR:-/tmp}/bustseg-try}
mkdir -p "$work/data"
# a project of its own: its volumes are not those of the real one
project=bustseg-try

# nothing is read from docker/.env, and the password is made here
if [ ! -s "$work/env" ]; then
    (umask 077 && echo "POSTGRES_PASSWORD=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')" > "$work/env")
fi
export DATA_DIR=$work/data SWEEP_CONFIG=/data/sweep.yaml
cat > "$work/data/sweep.yaml" <<'YAML'
config: /configs/quickstart.yaml
overrides:
  data.source.init_args.n: 60
  trainer.max_epochs: 2
  tracking.experiment: try-sweep
space:
  model.optimizer.init_args.lr: [1.0e-4, 1.0e-3, 1.0e-2]
  data.batch_size: [4, 8]
objective: val/dice_lesion
direction: maximize
sampler: optuna.samplers.GridSampler
YAML
cat > "$work/override.yaml" <<YAML
services:
  mlflow:
    build: {network: "${BUILD_NETWORK:-default}"}
  trainer:
    build: {network: "${BUILD_NETWORK:-default}"}
YAML

compose() {
    docker compose --project-name $project --env-file "$work/env" -f "$here/compose.yaml" -f "$work/override.yaml" "$@"
}

say() { printf '\n== %s  %s\n' "$(date +%T)" "$*"; }

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# ask EXPRESSION: prints a Python expression of `client`, evaluated in the server's container
ask() {
    compose exec -T mlflow python -W ignore -c "
from mlflow import MlflowClient
client = MlflowClient('http://127.0.0.1:5000')
def runs(experiment):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []
print($1)"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "no $what in time"
        sleep 2
    done
}

# stand_in SUITE PACKAGES: Debian's packages as an image, to stand in for one that a Dockerfile or the compose file names
stand_in() {
    local suite=$1 packages=$2 root=$work/root-$1
    say "Debian $suite with $packages"
    rm -rf "$root"
    debootstrap --variant=minbase --include="ca-certificates,netbase,tzdata,$packages" "$suite" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$root.log"
    if [ -n "${CA_BUNDLE:-}" ]; then cp "$CA_BUNDLE" "$root/etc/ssl/certs/ca-certificates.crt"; fi
    tar -C "$root" --exclude='./proc/*' --exclude='./sys/*' --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' -c . \
        | docker import - "stand-in-$suite:1"
    rm -rf "$root"
}

base() {
    local python postgres
    python=python:$(sed -n 's/^ARG PYTHON=//p' "$here/Dockerfile")
    postgres=$(compose config --images postgres | grep '^postgres:')
    if [ "$BASE" = hub ]; then
        docker pull "$python"
        docker pull "$postgres"
        return
    fi
    if ! docker image inspect "$python" > /dev/null 2>&1; then
        stand_in bookworm python3,python3-venv,python-is-python3
        docker tag stand-in-bookworm:1 "$python"
    fi
    if ! docker image inspect "$postgres" > /dev/null 2>&1; then
        stand_in trixie postgresql-17
        docker build --network none --tag "$postgres" --file - "$here" <<'DOCKERFILE'
FROM stand-in-trixie:1
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data
# as in the official image: a volume and a tmpfs take owner and mode from these folders
RUN install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data && chmod 3777 /run/postgresql
# the part of the official image's entry point that the compose file uses
RUN printf '%s\n' '#!/bin/sh' 'set -eu' 'if [ ! -s "$PGDATA/PG_VERSION" ]; then' \
    'printf %s "$POSTGRES_PASSWORD" > /tmp/password' \
    'initdb --username="$POSTGRES_USER" --pwfile=/tmp/password $POSTGRES_INITDB_ARGS' \
    'rm /tmp/password' \
    'echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"' \
    'pg_ctl -w -o "-c listen_addresses=" start' \
    'createdb --username="$POSTGRES_USER" "$POSTGRES_DB"' \
    'for file in /docker-entrypoint-initdb.d/*.sql; do' \
    'psql -v ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --file="$file"; done' \
    'pg_ctl -w -m fast stop; fi' \
    'exec postgres -c "listen_addresses=*"' > /usr/local/bin/docker-entrypoint.sh \
    && chmod 755 /usr/local/bin/docker-entrypoint.sh
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
DOCKERFILE
    fi
}

build() {
    say "build"
    compose build mlflow trainer
}

up() {
    say "PostgreSQL and MLflow"
    compose up --detach --no-build --wait
    # a container that can write outside of its volumes, or is root, would be a fault of the compose file
    [ "$(compose exec -T mlflow id -u)" = 10001 ] || fail "MLflow runs as another user"
    if compose exec -T mlflow sh -c 'touch /opt/written' 2> /dev/null; then fail "MLflow's file system is writable"; fi
}

fit() {
    say "fit, then test by the run's id in another container"
    compose run --rm -T trainer fit --config /configs/quickstart.yaml
    local run
    run=$(ask "runs('quickstart')[0].info.run_id")
    compose run --rm -T trainer test --ckpt_path "$run"
    ask "{name: round(value, 4) for name, value in client.get_run('$run').data.metrics.items() if name.startswith('test/dice')}"
    [ "$(ask "client.get_run('$run').info.status")" = FINISHED ] || fail "the run is not FINISHED"
    ask "'artifacts: ' + ', '.join(item.path for item in client.list_artifacts('$run'))"
}

# start_fit EXPERIMENT EPOCHS: a training in the background; prints the container's name
start_fit() {
    compose run --detach --no-deps --name "$project-$1" trainer fit --config /configs/quickstart.yaml \
        --tracking.experiment "$1" --trainer.max_epochs "$2" --data.source.init_args.n 120 > /dev/null
    wait_for 300 "finished epoch of $1" measured "$1"
}

measured() { [ "$(ask "any('val/dice_lesion' in run.data.metrics for run in runs('$1'))")" = True ]; }

outage() {
    say "kill PostgreSQL and MLflow in the middle of a training"
    docker rm --force $project-try-outage > /dev/null 2>&1 || true
    start_fit try-outage 12
    compose kill postgres mlflow
    sleep 10
    compose up --detach --no-build --wait
    [ "$(docker wait $project-try-outage)" = 0 ] || fail "$(docker logs $project-try-outage 2>&1 | tail -20)"
    docker logs $project-try-outage 2>&1 | grep -iE 'server|sync|missed' | tail -5 || true
    docker rm $project-try-outage > /dev/null
    [ "$(ask "runs('try-outage')[0].info.status")" = FINISHED ] || fail "the run is $(ask "runs('try-outage')[0].info.status")"
    local epochs
    epochs=$(ask "len({point.step for point in client.get_metric_history(runs('try-outage')[0].info.run_id, 'val/dice_lesion')})")
    echo "epochs on the server: $epochs of 12"
    [ "$epochs" = 12 ] || fail "epochs are missing"
}

stop() {
    say "docker stop in the middle of a training, and go on"
    docker rm --force $project-try-stop > /dev/null 2>&1 || true
    start_fit try-stop 8
    docker stop --time 120 $project-try-stop > /dev/null
    docker logs $project-try-stop 2>&1 | tail -3
    docker rm $project-try-stop > /dev/null
    local run
    run=$(ask "runs('try-stop')[0].info.run_id")
    [ "$(ask "client.get_run('$run').info.status")" = KILLED ] || fail "the run is not KILLED"
    compose run --rm -T trainer fit --ckpt_path "mlruns/remote/$run/checkpoints/last.ckpt"
    [ "$(ask "client.get_run('$run').info.status")" = FINISHED ] || fail "the run did not go on"
}

sweep() {
    say "two workers on one study; one is killed, and PostgreSQL and MLflow too"
    compose --profile sweep up --detach --no-build --no-deps --scale worker=2 worker
    wait_for 400 "point of the sweep" one_point
    docker kill "$project-worker-1" > /dev/null
    compose restart postgres mlflow
    compose up --detach --no-build --wait postgres mlflow
    docker start "$project-worker-1" > /dev/null
    local code
    for worker in 1 2; do
        code=$(docker wait "$project-worker-$worker")
        echo "worker $worker ended with $code"
        [ "$code" = 0 ] || fail "$(docker logs "$project-worker-$worker" 2>&1 | tail -30)"
    done
    ask "sorted((run.data.params['model.optimizer.init_args.lr'], run.data.params['data.batch_size'], run.info.status) for run in runs('try-sweep') if 'mlflow.parentRunId' in run.data.tags)"
    [ "$(ask "len({(run.data.params['model.optimizer.init_args.lr'], run.data.params['data.batch_size']) for run in runs('try-sweep') if run.info.status == 'FINISHED' and 'mlflow.parentRunId' in run.data.tags})")" = 6 ] \
        || fail "not every point is finished"
    compose --profile sweep rm --force --stop worker
}

one_point() { [ "$(ask "any('mlflow.parentRunId' in run.data.tags and run.info.status == 'FINISHED' for run in runs('try-sweep'))")" = True ]; }

ui() {
    say "the UI, from this machine"
    curl --silent --fail "http://127.0.0.1:$MLFLOW_PORT/" | grep -o '<title>[^<]*</title>'
    [ "$(curl --silent --output /dev/null --write-out '%{http_code}' -H 'Host: attacker.example' \
        "http://127.0.0.1:$MLFLOW_PORT/api/2.0/mlflow/experiments/search?max_results=1")" = 403 ] || fail "the server answers to any name"
}

sizes() {
    say "images ($(date +%F), Docker $(docker version --format '{{.Server.Version}}'), $(docker compose version))"
    docker images --format '{{.Repository}}:{{.Tag}}  {{.Size}}' | grep -E '^(bustseg|python|postgres)'
}

down() {
    say "remove containers and volumes; the images stay"
    compose --profile train --profile sweep down --volumes --remove-orphans
    rm -rf "$work"
}

steps=("$@")
if [ ${#steps[@]} = 0 ] || [ "${steps[0]}" = all ]; then steps=(base build up fit outage stop sweep ui sizes down); fi
for step in "${steps[@]}"; do
    case $step in
        base | build | up | fit | outage | stop | sweep | ui | sizes | down) "$step" ;;
        *) fail "there is no step $step" ;;
    esac
done
