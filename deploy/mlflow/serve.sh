#!/usr/bin/env bash
# The MLflow server for many sweeps: runs in PostgreSQL, artifacts through the server, a password
# for everyone. Its settings are environment variables: docs/cluster.md, "MLflow server". Further
# options go to `mlflow server` as they are: serve.sh --workers 2
set -euo pipefail
umask 077
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() { echo "serve.sh: $1" >&2; exit 2; }

# secret NAME: the variable NAME, or else the content of the file that NAME_FILE names.
secret() {
  local name="$1" file_name="${1}_FILE"
  if [[ -z "${!name:-}" ]]; then
    local file="${!file_name:-}"
    [[ -n "$file" ]] || fail "$name is not set; set it, or $file_name to a file of mode 600 that holds it"
    [[ -r "$file" ]] || fail "$file_name = $file cannot be read; write the secret there, with mode 600"
    local mode
    mode="$(stat -Lc %a "$file")"
    [[ "$mode" == [46]00 ]] || fail "$file_name = $file has mode $mode, so others may read it; chmod 600 $file"
    export "$name=$(<"$file")"
    [[ -n "${!name}" ]] || fail "$file_name = $file is empty; write the secret there"
  fi
}

for name in PGHOST PGUSER PGDATABASE MLFLOW_ARTIFACTS_DESTINATION; do
  [[ -n "${!name:-}" ]] || fail "$name is not set; docs/cluster.md lists the settings"
done
secret MLFLOW_AUTH_ADMIN_PASSWORD
secret MLFLOW_FLASK_SERVER_SECRET_KEY

host="${MLFLOW_HOST:-127.0.0.1}"
port="${MLFLOW_PORT:-5000}"
# MLflow compares a request's whole Host header: a name allows neither the name with a port nor
# the other way round. Origin is what browsers send along when they change something.
hosts=""
origins=""
for name in ${MLFLOW_NAMES:-localhost 127.0.0.1}; do
  hosts+="${hosts:+,}$name,$name:$port"
  origins+="${origins:+,}https://$name,https://$name:$port,http://$name:$port"
done

# The project's own environment where there is one; else, as in the image, the Python in the path.
python="${PYTHON:-$here/../../.venv/bin/python}"
[[ -x "$python" ]] || python="python3"
export MLFLOW_AUTH_CONFIG_PATH="$here/basic_auth.ini"
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"
# Jobs that the server runs itself: stabmap has no use for them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

exec "$python" -m mlflow server --app-name basic-auth --host "$host" --port "$port" \
  --backend-store-uri postgresql+psycopg2:// \
  --serve-artifacts --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" \
  --allowed-hosts "$hosts" --cors-allowed-origins "$origins" "$@"
