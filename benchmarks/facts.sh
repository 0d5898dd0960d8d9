#!/bin/sh
# What a machine says of itself, before anybody knows whether it has Python: a line for each fact, its fields between tabs.
#
#     sh facts.sh [ROOT]        or, from elsewhere:        ssh board sh -s < facts.sh        adb shell sh -s < facts.sh
#
# A fact that is missing or forbidden has no line; benchmarks/facts.py says what each means. Everything is read below ROOT, so
# that a test can lay out a board. It has to run in dash, busybox, mksh with toybox, zsh and bash: no awk, no arrays, no local.

root=${1-}
LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin:/usr/bin:/bin:/opt/vc/bin
export LC_ALL PATH
cpus=$root/sys/devices/system/cpu

say() { # name field...: a line
    line=$1
    shift
    for field; do line="$line	$field"; done
    printf '%s\n' "$line"
}

first() { # file: its first line into $value; nothing where it cannot be read, as a sensor that sleeps
    value=
    { IFS= read -r value <"$1"; } 2>/dev/null
    [ -n "$value" ]
}

tell() { # file name field...: a line, if the file holds something
    first "$1" || return
    shift
    say "$@" "$value"
}

bare() { # file: the same of one that ends in a NUL, or that shells must not read byte by byte (/proc/sys)
    value=$({ tr -d '\000' <"$1" | head -n 1; } 2>/dev/null)
    [ -n "$value" ]
}

told() { # name command...: a line with what a command prints, if it is there and prints something
    name=$1
    shift
    command -v "$1" >/dev/null 2>&1 || return
    value=$("$@" 2>/dev/null </dev/null | head -n 1)
    [ -n "$value" ] && say "$name" "$value"
}

processors() {
    # Once what is the same for all of them, else the list would be long; the rest for each, as big and little ones differ
    info=$root/proc/cpuinfo
    grep -E '^(flags|Features)[[:space:]]*:' "$info" 2>/dev/null | head -n 1 | sed 's/^[^:]*:[[:space:]]*/features	/'
    grep -E '^(processor|model name|Model|Hardware|vendor_id|uarch|mmu|CPU implementer|CPU part|cpu MHz)[[:space:]]*:' "$info" 2>/dev/null |
        sed 's/^\([^:	]*\)[[:space:]]*:[[:space:]]*/cpuinfo	\1	/'
    tell "$cpus/online" online
    for cpu in "$cpus"/cpu[0-9]*; do
        number=${cpu##*/cpu}
        tell "$cpu/cpu_capacity" core "$number" capacity
        tell "$cpu/topology/thread_siblings_list" core "$number" siblings
        tell "$cpu/regs/identification/midr_el1" core "$number" midr
        for name in cpuinfo_max_freq scaling_max_freq scaling_cur_freq scaling_governor scaling_driver; do
            tell "$cpu/cpufreq/$name" core "$number" "$name"
        done
    done
}

heat() {
    for zone in "$root"/sys/class/thermal/thermal_zone*; do
        first "$zone/type" && kind=$value || kind=${zone##*/}
        tell "$zone/temp" temperature "$kind"
    done
    for device in "$root"/sys/class/thermal/cooling_device*; do
        first "$device/type" || continue
        kind=$value
        first "$device/max_state" && most=$value || most=
        tell "$device/cur_state" cooling "$kind" "$most"
    done
    pi=$root/sys/devices/platform/soc/soc:firmware/get_throttled
    if [ -r "$pi" ]; then
        tell "$pi" pi_throttled
    elif [ -z "$root" ]; then
        told pi_throttled vcgencmd get_throttled
    fi
}

energy() {
    for zone in "$root"/sys/class/powercap/*rapl:*; do
        first "$zone/energy_uj" && tell "$zone/name" energy RAPL
    done
    for chip in "$root"/sys/class/hwmon/hwmon*; do
        first "$chip/name" || continue
        name=$value
        for file in "$chip"/temp*_input; do
            tell "$file" temperature "$name"
        done
        for file in "$chip"/energy*_input "$chip"/power*_input "$chip"/curr*_input; do
            first "$file" || continue
            first "${file%_input}_label" && label=$value || label=${file##*/}
            say energy hwmon "$name $label"
        done
    done
    for supply in "$root"/sys/class/power_supply/*; do
        first "$supply/type" || continue
        kind=$value
        first "$supply/status" && status=$value || status=
        say supply "${supply##*/}" "$kind" "$status"
    done
}

memory() {
    grep -E '^(MemTotal|MemFree|MemAvailable|SwapTotal):' "$root/proc/meminfo" 2>/dev/null |
        sed 's/^\([A-Za-z]*\):[[:space:]]*\([0-9]*\).*/memory	\1	\2/'
}

limit() { # version mount group: what the control groups from there up to the mount allow
    group=$3
    case /$group/ in */../*) return ;; esac
    while :; do
        folder=$2${group%/}
        if [ "$1" = 2 ]; then
            tell "$folder/cpu.max" cpu_max
            tell "$folder/memory.max" memory_max
        else
            first "$folder/cpu.cfs_quota_us" && quota=$value && first "$folder/cpu.cfs_period_us" && say cpu_max "$quota $value"
            tell "$folder/memory.limit_in_bytes" memory_max
        fi
        [ -n "${group%/}" ] || break
        group=${group%/*}
    done
}

quotas() {
    top=$root/sys/fs/cgroup
    while IFS=: read -r number controllers group; do
        [ -n "$number" ] || continue
        if [ -z "$controllers" ]; then
            [ -d "$top/unified" ] && limit 2 "$top/unified" "$group" || limit 2 "$top" "$group"
            continue
        fi
        case ,$controllers, in *,cpu,* | *,memory,*) ;; *) continue ;; esac
        for name in "$controllers" cpu memory; do
            case ,$controllers, in *,"$name",*) ;; *) continue ;; esac
            [ -d "$top/$name" ] && limit 1 "$top/$name" "$group" && break
        done
    done
}

android() {
    [ -z "$root" ] && command -v getprop >/dev/null 2>&1 || return
    for name in ro.product.manufacturer ro.product.model ro.soc.manufacturer ro.soc.model ro.board.platform \
        ro.product.cpu.abi ro.build.version.release ro.build.version.sdk; do
        value=$(getprop "$name" 2>/dev/null </dev/null | head -n 1)
        [ -n "$value" ] && say android "$name" "$value"
    done
}

darwin() {
    [ -z "$root" ] || return
    for name in hw.model machdep.cpu.brand_string hw.logicalcpu hw.memsize hw.optional.arm.FEAT_DotProd hw.optional.arm.FEAT_I8MM; do
        value=$(sysctl -n "$name" 2>/dev/null </dev/null | head -n 1)
        [ -n "$value" ] && say darwin "$name" "$value"
    done
}

say facts 1
system=$(uname -s 2>/dev/null)
told system uname -s
told kernel uname -r
told architecture uname -m
bare "$root/proc/sys/kernel/arch" && say kernel_architecture "$value"
if bare "$root/proc/device-tree/model"; then
    say model "$value"
else
    tell "$root/sys/class/dmi/id/product_name" model
fi
[ -z "$root" ] && told libc getconf GNU_LIBC_VERSION
for file in "$root"/lib/ld-musl-*.so.1; do
    [ -e "$file" ] && say libc musl
done
processors
heat
energy
memory
{ quotas <"$root/proc/self/cgroup"; } 2>/dev/null
[ -n "${HOME-}" ] && value=$(df -Pk "$HOME" 2>/dev/null </dev/null | sed -n '2s/.*[[:space:]]\([0-9][0-9]*\)[[:space:]][[:space:]]*[0-9]*%.*/\1/p') &&
    [ -n "$value" ] && say disk "$value"
android
[ "$system" = Darwin ] && darwin
say end
