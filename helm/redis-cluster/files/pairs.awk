# Lines "node machine" to lines "primary replica", as many pairs on two machines as possible.
#
# The nodes are taken machine by machine in turn.  The first half become primaries, so primaries are spread; the second
# half, turned as far as keeps most pairs apart, become their replicas.

{
    if (!($2 in count)) machines[++machine_count] = $2
    node[$2, ++count[$2]] = $1
}

END {
    total = 0
    for (turn = 1; total < NR; turn++)
        for (m = 1; m <= machine_count; m++)
            if (turn <= count[machines[m]]) {
                order[total] = node[machines[m], turn]
                machine[total++] = machines[m]
            }
    half = int(total / 2)
    most = -1
    for (shift = 0; shift < half; shift++) {
        apart = 0
        for (i = 0; i < half; i++) apart += machine[i] != machine[half + (i + shift) % half]
        if (apart > most) { most = apart; best = shift }
    }
    for (i = 0; i < half; i++) print order[i], order[half + (i + best) % half]
}
