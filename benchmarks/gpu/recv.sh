# recv.sh FOLDER: take a part of the kit over into /tmp/kit; wheels are installed, archives unpacked
set -e; mkdir -p /tmp/kit /tmp/site; cp -r $1/. /tmp/kit/; cd /tmp/kit
for t in *.tar; do [ -e "$t" ] && tar xf $t && rm $t; done
for k in lite0 lite1 lite2; do [ -d $k ] && cp -r $k/. /tmp/site/ && rm -r $k; done
if [ -d wheels ] && [ ! -e /tmp/site/mlflow ]; then ${PY:-python3} -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site wheels/*.whl 2>&1 | tail -3; rm -r wheels; fi
true
