#!/usr/bin/env bash
# Finds words that are not used any more (retired-words.tsv) in the tracked files and in their names. Prints for each
# `file:line: "word": use "replacement"`. `--self-test` shows that it finds a word that was added to a list.
set -euo pipefail
export LC_ALL=C

# Prints "kind TAB pattern TAB replacement": kind is `any` or `exact`, for the case of letters, or `allow`.
read_list() { # LIST
    awk -F '\t' '
        /^#/ || /^$/ { next }
        /^!/ { print "allow\t" substr($0, 2) "\t"; next }
        NF != 2 || $1 == "" || $2 == "" {
            print FILENAME ":" FNR ": needs a pattern, one tab and a replacement" >"/dev/stderr"
            exit 2
        }
        {
            pattern = ""
            rest = $1
            # @Name; the names keep what is behind them, such as `s?`
            while (match(rest, /@[A-Za-z?]+/)) {
                name = substr(rest, RSTART + 1, RLENGTH - 1)
                found = "(struct|enum|trait|type) +" name "\\>|\\<" name "::|::" name "\\>"
                pattern = pattern substr(rest, 1, RSTART - 1) found
                rest = substr(rest, RSTART + RLENGTH)
            }
            pattern = pattern rest
            kind = pattern ~ /[A-Z]/ ? "exact" : "any"
            gsub(/\\</, "(^|[^A-Za-z0-9_])", pattern)
            gsub(/\\>/, "([^A-Za-z0-9_]|$)", pattern)
            print kind "\t" pattern "\t" $2
        }' "$1"
}

# The lines that may hold a word, each as "kind TAB file:line:text"; grep is fast, but does not tell which word it was.
candidates() { # READ_LIST
    local kind pattern
    for kind in any exact; do
        pattern=$(awk -F '\t' -v kind="$kind" '$1 == kind { printf "%s%s", separator, $2; separator = "|" }' "$1")
        [ -n "$pattern" ] || continue
        local grep=(-n -I -E)
        [ "$kind" = exact ] || grep+=(-i)
        # A status of 1 says that nothing was found
        git grep "${grep[@]}" -e "$pattern" -- "${files[@]}" | sed "s/^/$kind	/" ||
            [ "${PIPESTATUS[0]}" = 1 ] || return 2
        git ls-files -- "${files[@]}" | sed "s/.*/$kind	&:0:&/"
    done
}

check() { # LIST
    local list status=0
    list=$(mktemp)
    read_list "$1" >"$list"
    candidates "$list" | awk -F '\t' '
        NR == FNR { kinds[NR] = $1; patterns[NR] = $2; replacements[NR] = $3; words = NR; next }
        {
            kind = $1
            place = substr($0, length(kind) + 2)
            match(place, /^[^:]*:[0-9]+:/)
            text = substr(place, RLENGTH + 1)
            place = substr(place, 1, RLENGTH)
            # A line 0 is the name of the file
            sub(/:0:$/, ":", place)
            for (i = 1; i <= words; i++) if (kinds[i] == "allow") gsub(patterns[i], "", text)
            for (i = 1; i <= words; i++) {
                if (kinds[i] != kind || !match(kind == "any" ? tolower(text) : text, patterns[i])) continue
                word = substr(text, RSTART, RLENGTH)
                gsub(/^[^A-Za-z0-9_]+|[^A-Za-z0-9_]+$/, "", word)
                printf "%s \"%s\": use \"%s\"\n", place, word, replacements[i]
                found = 1
            }
        }
        END { exit found }' "$list" - | sort -t : -k 1,1 -k 2,2n || status=$?
    rm -f "$list"
    return "$status"
}

files=(
    .
    ':(exclude)CHANGELOG.md'
    ':(exclude)Cargo.lock'
    ':(exclude)LICENSE'
    ':(exclude)bench/results'
    ':(exclude)crates/e2e/ojs'
    ':(exclude)crates/fuzz/corpus'
    ':(exclude)deploy/dev/retired-words.tsv'
    ':(exclude)docs/adr'
    ':(exclude,glob)**/*.png'
    ':(exclude,glob)**/package-lock.json'
)

self_test() {
    local found expected
    # Global, for the trap
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    # In a hook git names the repository that is committed to
    # shellcheck disable=SC2046 # one word for each variable
    unset $(git rev-parse --local-env-vars)
    git init -q
    mkdir docs docs/adr
    printf 'gizmo\twidget\n@Thing\tItem\n\\<bit\\>\tpiece\n!/api/gizmo\n' >list
    printf 'a GIZMO_ms\nGET /api/gizmo\nstruct Thing;\nlet thing: Thing;\na bit, habits\n' >text.rs
    cp text.rs docs/adr/0001.md
    touch gizmo.rs
    git add text.rs docs gizmo.rs
    found=$(check list) && { echo "check-words.sh finds nothing" >&2; exit 1; }
    expected='gizmo.rs: "gizmo": use "widget"
text.rs:1: "GIZMO": use "widget"
text.rs:3: "struct Thing": use "Item"
text.rs:5: "bit": use "piece"'
    if [ "$found" != "$expected" ]; then
        printf 'check-words.sh finds\n%s\ninstead of\n%s\n' "$found" "$expected" >&2
        exit 1
    fi
    printf 'nothing\there\n' >list
    check list || { echo "check-words.sh finds what is not there" >&2; exit 1; }
}

if [ "${1:-}" = --self-test ]; then
    self_test
else
    cd "$(dirname "$0")/../.."
    check deploy/dev/retired-words.tsv
fi
