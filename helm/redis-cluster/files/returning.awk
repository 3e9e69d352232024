# The nodes.conf with which an emptied node comes back; nothing while the slots are still its own.
#
#   awk -v name=<its name> -v address=<its address>:<port>@<bus port> [-v as_it_was=1] -f returning.awk <CLUSTER NODES of another>
#
# It keeps its id, so that the others know it.  Once a replica has been promoted in its place it follows the primary
# that has the fewest replicas.  With as_it_was it returns with its slots and without its data: the log has it all.
# local/redis_cluster.py does the same for processes; there are the tests of the reasoning.

function name_of(line_address,    part) { split(line_address, part, ","); return part[2] }

function slots_of(    field, slots) {
    for (field = 9; field <= NF; field++)
        if ($field !~ /^\[/) slots = slots " " $field
    return slots
}

{
    if ($7 + 0 > epoch) epoch = $7 + 0
    slots = slots_of()
    # Of two with its name the one that still has slots.
    if (name_of($2) == name && (my_id == "" || slots != "")) {
        my_id = $1; my_primary = $4; my_epoch = $7; my_slots = slots
        next
    }
    # Without an address it is on its way out; in a handshake it is nobody yet.
    if (name_of($2) == name || $3 ~ /noaddr|handshake/) next
    count++
    id[count] = $1; at[count] = $2; role[count] = $3 ~ /slave/ ? "slave" : "master"
    primary[count] = $4; config_epoch[count] = $7; served[count] = slots
    if ($3 ~ /slave/) replicas[$4]++
}

END {
    if (my_id == "") exit 1
    if (my_slots != "" && !as_it_was) exit 1
    if (my_slots == "" ) {
        for (i = 1; i <= count; i++)
            if (served[i] != "" && (chosen == "" || replicas[id[i]] < replicas[chosen])) chosen = id[i]
        if (chosen == "") exit 1
    }
    print my_id, address "," name, chosen ? "myself,slave" : "myself,master", chosen ? chosen : "-", 0, 0, my_epoch, "connected" my_slots
    for (i = 1; i <= count; i++)
        print id[i], at[i], role[i], primary[i], 0, 0, config_epoch[i], "connected" served[i]
    # Its last vote is forgotten, and nobody votes twice: it counts as given in this epoch.
    print "vars currentEpoch", epoch, "lastVoteEpoch", epoch
}
