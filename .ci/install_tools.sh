#!/usr/bin/env bash
# Installs the compilers and simulators that are missing, where apt-get may do it; names those that stay missing.
#
#   install_tools.sh demo    what the demonstration needs
#   install_tools.sh all     what every test and benchmark can use
set -uo pipefail

#      program                  packages                                          what is skipped without it
DEMO="gcc                      gcc,libc6-dev                                      running C on this machine
      arm-none-eabi-gcc        gcc-arm-none-eabi,libnewlib-arm-none-eabi          C for Cortex-M, its simulation and its sizes"
ALL="$DEMO
      g++                      g++                                                the check of headers as C++
      clang                    clang                                              the second compiler of emitted C
      cmake                    cmake                                              the build of the emitted CMake package
      riscv64-unknown-elf-gcc  gcc-riscv64-unknown-elf                            the compilation of emitted C for RISC-V
      qemu-system-arm          qemu-system-arm                                    the comparison of instruction counts with QEMU
      aarch64-linux-gnu-gcc    gcc-aarch64-linux-gnu,libc6-dev-arm64-cross        the kernel of packed weights on Arm
      qemu-aarch64             qemu-user                                          the same"

case "${1:-}" in
    demo) wanted=$DEMO ;;
    all) wanted=$ALL ;;
    *) echo "usage: $0 demo|all" >&2; exit 2 ;;
esac

missing_packages() {
    while read -r program packages _; do
        command -v "$program" >/dev/null || echo "${packages//,/ }"
    done <<<"$wanted"
}

install() {
    local packages
    packages=$(missing_packages)
    [ -n "$packages" ] || return 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    export DEBIAN_FRONTEND=noninteractive
    echo "installing" $packages
    # shellcheck disable=SC2086  # a list of words
    { timeout 300 apt-get -qq update && timeout 1200 apt-get -qq install -y --no-install-recommends $packages; } \
        >build/apt.log 2>&1 || echo "apt-get did not succeed; see build/apt.log"
}

install
while read -r program packages skipped; do
    command -v "$program" >/dev/null ||
        echo "$program is not installed, so this is skipped: $skipped (Debian: apt-get install ${packages//,/ })"
done <<<"$wanted"
