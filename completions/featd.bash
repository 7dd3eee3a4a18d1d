# Completion of featd for bash >= 4.3. `featd completion bash --install` puts it into place.

_featd() {
    local word value help quoted prefix=
    local -a words=()
    local -i at
    # bash splits words at = and :, which are joined here again. No word is evaluated.
    for ((at = 1; at <= COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]//[\\\"\']/}
        if [[ $word == "=" ]]; then
            ((at == COMP_CWORD)) && words+=("")
        elif ((${#words[@]})) && [[ $word == :* || ${words[-1]} == *: ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    word=${words[-1]}
    [[ $word == *:* && $COMP_WORDBREAKS == *:* ]] && prefix=${word%"${word##*:}"}
    COMPREPLY=()
    while IFS=$'\t' read -r value help; do
        printf -v quoted %q "${value#"$prefix"}"
        COMPREPLY+=("$quoted")
    done < <(_FEATD_COMPLETE=1 "$1" "${words[@]}" 2>/dev/null)
}

complete -o default -F _featd featd
