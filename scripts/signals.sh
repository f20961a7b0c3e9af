# shellcheck shell=bash
# Sourced by scripts that run several commands: `. scripts/signals.sh`. A shell that waits for a command in the foreground
# hears `kill` only when that has ended, or dies and leaves it running; so commands run in the background here.

pids=() signal="" again=""
go_on="run the same command" # what is said of it after a signal

# begin COMMAND ...   starts it in the background. A signal to this shell is passed on as SIGTERM: what a shell starts with
# & ignores SIGINT.
begin() {
    trap 'hear 130' INT
    trap 'hear 143' TERM
    "$@" &
    pids+=($!)
}

hear() {
    signal=$1 again=1
    kill -TERM "${pids[@]}" 2>/dev/null || true
}

# finish   waits for all that `begin` started. Returns a status that is not 0, if there was one; after a signal its own.
finish() {
    local pid code status=0
    # One that was started after the signal came.
    [[ ! $signal ]] || kill -TERM "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do
        # A signal ends `wait` before the command has ended: the status is then that of the signal.
        again=1
        while [[ $again ]]; do
            again="" code=0
            wait "$pid" || code=$?
        done
        [[ $code -eq 0 ]] || status=$code
    done
    trap - INT TERM
    pids=()
    if [[ $signal ]]; then
        # The commands say so themselves, but not at their very beginning and end.
        echo "stopped by a signal; to go on, $go_on: what is finished is kept and not done again" >&2
        status=$signal
    fi
    return "$status"
}

# run COMMAND ...   both
run() {
    begin "$@"
    finish
}
