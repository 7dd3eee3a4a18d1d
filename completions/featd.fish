# Completion of featd for fish >= 3.1. `featd completion fish --install` puts it into place.

function __featd_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (_FEATD_COMPLETE=1 $words[1] $words[2..] "$current" 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end

complete -c featd -f -a '(__featd_complete)'
