#!/usr/bin/env bash
# Installs the Debian packages the build needs and says which; silent and offline when all are there.
# With an argument "bench" or "ci" also those of the benchmarks or of CI.
set -euo pipefail

packages=(g++ cmake ninja-build pkg-config binutils libhwy-dev libfmt-dev nlohmann-json3-dev libcli11-dev
          zlib1g-dev libxxhash-dev libgtest-dev)
case "${1:-}" in
  bench) packages+=(libopenblas-openmp-dev libdnnl-dev) ;;
  ci) packages+=(clang-14 libomp-14-dev clang-format-14 git) ;;
esac

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "These packages are missing and sudo is absent: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "Installing missing Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq || echo "apt-get update failed; trying with the package lists at hand" >&2
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
