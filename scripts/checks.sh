# What a script demands of its settings: source it. A setting that is none ends the script with one line and status 2.
refuse() {
    echo "error: $1" >&2
    exit 2
}

# check_count NAME VALUE: a number from 1 to 99999. No leading zero: the shell takes it for octal.
check_count() {
    [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || refuse "$1 must be a number from 1 to 99999, not '$2'"
}

# check_list NAME VALUE: one or more numbers, without leading zeros, with spaces between them.
check_list() {
    local number='(0|[1-9][0-9]{0,8})'
    [[ $2 =~ ^\ *$number(\ +$number)*\ *$ ]] || refuse "$1 must be numbers with spaces between them, not '$2'"
}
