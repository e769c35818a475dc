# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations once more, as a plain table that is walked through, for comparison with the real ones.

Written from SPC-5 5.14 alone and as simply as possible; it shares nothing with what it is compared to but the numbers
of types and the names of sense codes.
"""

from vhost_scsi.scsi import sense

CONFLICT = "RESERVATION CONFLICT"
ALL_REGISTRANTS = (7, 8)
REGISTRANTS_TOO = (5, 6, 7, 8)
EXCLUSIVE_ACCESS = (3, 6, 8)


class Refused(Exception):
    """Carries CONFLICT, or the sense code."""


class Model:
    def __init__(self, names):
        self.keys = dict.fromkeys(names)
        self.reservation = None
        """(type, name of the one who made it)"""
        self.generation = 0
        self.legacy = None
        self.attentions = {name: [] for name in names}

    # ---- looking ----

    def registered(self):
        return [name for name, key in self.keys.items() if key]

    def holders(self):
        if not self.reservation:
            return []
        kind, maker = self.reservation
        return self.registered() if kind in ALL_REGISTRANTS else [maker]

    def may(self, name, what):
        """`what`: "read", "write" or "ready"."""
        if self.legacy not in (None, name):
            return False
        if what == "ready" or not self.reservation or name in self.holders():
            return True
        kind = self.reservation[0]
        if kind in REGISTRANTS_TOO and self.keys[name]:
            return True
        return what == "read" and kind not in EXCLUSIVE_ACCESS

    # ---- changing ----

    def tell(self, names, but, code):
        for name in names:
            if name != but and code not in self.attentions[name]:
                self.attentions[name].append(code)

    def admit(self, name, key):
        if self.legacy:
            raise Refused(CONFLICT)
        if key is not None and (not self.keys[name] or self.keys[name] != key):
            raise Refused(CONFLICT)

    def forget(self, name):
        """One registration goes; whether the reservation went with it."""
        was = self.holders()
        self.keys[name] = None
        if self.reservation and name in was and (self.reservation[0] not in ALL_REGISTRANTS or not self.registered()):
            self.reservation = None
            return True
        return False

    def register(self, name, key, new, ignore):
        self.admit(name, None)
        if not ignore and key != (self.keys[name] or 0):
            raise Refused(CONFLICT)
        if not new and not self.keys[name]:
            return
        self.generation += 1
        if new:
            self.keys[name] = new
            return
        kind = self.reservation[0] if self.reservation else None
        if self.forget(name) and kind in REGISTRANTS_TOO:
            self.tell(self.registered(), name, sense.RESERVATIONS_RELEASED)

    def reserve(self, name, key, kind):
        self.admit(name, key)
        if self.reservation and (name not in self.holders() or self.reservation[0] != kind):
            raise Refused(CONFLICT)
        self.reservation = self.reservation or (kind, name)

    def release(self, name, key, kind):
        self.admit(name, key)
        if name not in self.holders():
            return
        if self.reservation[0] != kind:
            raise Refused(sense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
        self.reservation = None
        if kind in REGISTRANTS_TOO:
            self.tell(self.registered(), name, sense.RESERVATIONS_RELEASED)

    def clear(self, name, key):
        self.admit(name, key)
        self.generation += 1
        self.tell(self.registered(), name, sense.RESERVATIONS_PREEMPTED)
        self.reservation = None
        for each in self.keys:
            self.keys[each] = None

    def preempt(self, name, key, victim, kind):
        """Gives whose commands PREEMPT AND ABORT ends."""
        self.admit(name, key)
        everybody = self.reservation and self.reservation[0] in ALL_REGISTRANTS
        if not victim and not everybody:
            raise Refused(sense.INVALID_FIELD_IN_PARAMETER_LIST)
        named = [each for each in self.registered() if self.keys[each] == victim]
        takes = not victim
        if not everybody:
            takes = bool(self.reservation) and self.reservation[1] in named
        if not takes and not named:
            raise Refused(CONFLICT)
        self.generation += 1
        if not takes:
            for each in named:
                self.forget(each)
            self.tell(named, name, sense.REGISTRATIONS_PREEMPTED)
            return named
        gone = [each for each in (named if victim else self.registered()) if each != name]
        before, self.reservation = self.reservation[0], None
        for each in gone:
            self.keys[each] = None
        self.reservation = (kind, name)
        self.tell(gone, name, sense.REGISTRATIONS_PREEMPTED)
        if before != kind:
            self.tell(self.registered(), name, sense.RESERVATIONS_RELEASED)
        return gone

    def move(self, name, key, new, to, unregister):
        self.admit(name, key)
        if not self.reservation:
            raise Refused(sense.INVALID_FIELD_IN_CDB)
        if self.reservation[0] in ALL_REGISTRANTS or self.reservation[1] != name:
            raise Refused(CONFLICT)
        if not new:
            raise Refused(sense.INVALID_FIELD_IN_PARAMETER_LIST)
        self.generation += 1
        self.keys[to] = new
        self.reservation = (self.reservation[0], to)
        if unregister:
            self.keys[name] = None

    # ---- RESERVE and RELEASE ----

    def exempt(self, name):
        if name in self.holders() or (self.reservation and self.reservation[0] in REGISTRANTS_TOO and self.keys[name]):
            return True
        if self.registered():
            raise Refused(CONFLICT)
        return False

    def reserve_6(self, name):
        if self.legacy not in (None, name):
            raise Refused(CONFLICT)
        if not self.exempt(name):
            self.legacy = name

    def release_6(self, name):
        if self.legacy is None:
            self.exempt(name)
        elif self.legacy == name:
            self.legacy = None
