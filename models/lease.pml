/* How a session is worked on, and by whom: claim, append, renew, release, notify. One session, two workers, a client, a database that keeps what it acknowledged,
 * leases that expire at any moment, workers that stand still for any time or die, notifications that may be lost. Every interleaving is looked at.
 *
 * Checked: only the newest lease holder's appends take effect, the log has no gap, nothing that was acknowledged is lost, no message is taken twice (assertions),
 * and work that is ready is always taken up (the formula at the end).
 *
 * To prove that the check can fail, each of these must make it fail:
 *   NO_FENCE      an append does not look at the epoch
 *   EARLY_REPLY   the client is answered before its message is durable
 *   DOUBLE_CLAIM  a claim does not look at the lease
 *   NO_GUARD      the last append of a turn does not look for new messages
 *   NO_POLL       nobody looks for work that no notification announced
 */

#define MESSAGES 2
#define EXPIRIES 2
#define CRASHES 1

/* The database's row of the session. Each atomic block is a transaction. */
byte epoch;              /* raised by every claim */
bool leased;
bool ready;
byte head;               /* the length of the log */
byte client_head;        /* the newest record that a client wrote */
byte received;           /* messages in the log */
byte taken;              /* messages that a brain has taken */
byte writer;             /* the epoch of the newest record a brain wrote */

bool orphan;             /* the lease's holder died */

byte acknowledged;       /* messages the client was told are there */
bool notified;
byte expiries, crashes;

/* Between a commit that was acknowledged and one that is durable there is nothing, unless the server answers too early. */
#ifdef EARLY_REPLY
byte pending;
#endif

inline notify() {
    if
    :: notified = true
    :: skip            /* lost */
    fi
}

active proctype Client() {
    byte sent = 0;
    do
    :: sent < MESSAGES ->
#ifdef EARLY_REPLY
        atomic { pending++; acknowledged++ };
        /* The server dies here: what waited to be written is gone. */
        if
        :: atomic { pending--; head++; client_head = head; received++; ready = true }
        :: atomic { crashes < CRASHES -> crashes++; pending-- }
        fi;
#else
        atomic { head++; client_head = head; received++; ready = true };
        atomic { acknowledged++; assert(received >= acknowledged) };
#endif
        notify();
        sent++
    :: else -> break
    od;
    assert(received >= acknowledged)
}

/* A worker that stands still is one that is not scheduled; one that dies forgets what it believed. */
active [2] proctype Worker() {
    byte mine = 0;       /* the epoch it believes in */
    byte seen = 0;       /* the newest client record it has read */
    byte known = 0;      /* messages it has folded */
    byte end;

wait:
    do
    :: atomic { notified -> notified = false } -> break
#ifndef NO_POLL
    :: atomic { ready && !leased } -> break
#endif
    od;

claim:
    atomic {
        if
#ifdef DOUBLE_CLAIM
        :: ready -> mine = (leased -> epoch : epoch + 1); epoch = mine; leased = true
#else
        :: ready && !leased -> epoch++; mine = epoch; leased = true; orphan = false
#endif
           seen = client_head; known = taken
        :: else -> goto wait
        fi
    };

turn:
    if
    :: true -> skip
    :: atomic { crashes < CRASHES -> crashes++; orphan = (leased && mine == epoch); mine = 0; seen = 0; known = 0 } -> goto wait
    fi;

    /* Takes what is there: one append under the lease. Everything decided before it may be old by now. */
    atomic {
        if
#ifdef NO_FENCE
        :: true ->
#else
        :: epoch == mine ->
#endif
            if
            :: known < received ->
                assert(taken == known);   /* no message is taken twice */
                assert(writer <= mine);   /* epochs never interleave */
                end = head; head++; writer = mine; taken = received; known = received; seen = client_head;
                assert(head == end + 1)
            :: else -> skip
            fi
        :: else -> goto wait              /* the lease is lost */
        fi
    };

    /* Renews: a lease that expired and was not claimed by another goes on. */
    atomic {
        if
        :: epoch == mine -> leased = true
        :: else -> goto wait
        fi
    };

    /* The last append: refused if a client has written since. It gives up the lease. */
    atomic {
        if
        :: epoch != mine -> goto wait
#ifdef NO_GUARD
        :: epoch == mine ->
#else
        :: epoch == mine && client_head > seen -> goto turn
        :: epoch == mine && client_head <= seen ->
#endif
            assert(writer <= mine);
            head++; writer = mine; ready = false; leased = false
        fi
    };
    goto wait
}

/* A lease expires while its holder stands still, as often as the bound allows; one whose holder died always does. */
active proctype Time() {
end:
    do
    :: atomic { leased && !orphan && expiries < EXPIRIES -> expiries++; leased = false; notify() }
    :: atomic { leased && orphan -> leased = false; orphan = false; notify() }
    od
}

/* Ready work is always taken up. */
ltl taken_up { [] (received > 0 -> <> (taken == received)) }
