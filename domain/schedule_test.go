package domain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"accountledger/eventstore"
)

// noon is the time of fold's first event.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func plannedAt(id string, kind ScheduleKind, due time.Time) SchedulePlanned {
	p := SchedulePlanned{ScheduleID: id, Kind: kind, DueTime: due, Origin: ScheduleManual}
	if kind == ScheduleStatusChange {
		p.TargetStatus = StatusDeclined
	}
	return p
}

func TestDecideSchedules(t *testing.T) {
	hour := noon.Add(time.Hour)
	due := hour.Add(-500 * time.Millisecond)
	remind, decline, end := plannedAt("r", ScheduleReminder, due), plannedAt("s", ScheduleStatusChange, due), plannedAt("d", ScheduleDeletion, due)
	auto := remind
	auto.ScheduleID, auto.Origin, auto.SetupID, auto.DueTime = "auto", ScheduleAuto, "first", hour.Add(time.Hour)
	daily := remind
	daily.PeriodSeconds, daily.DueTime = minPeriod, due.Add(-50*time.Hour)
	pending := adaCreated
	pending.Status = StatusPending
	deleting := []Event{pending, auto, plannedAt("g", ScheduleDeletion, due), DeletionScheduled{"g", StatusPending, due}}
	with := func(given []Event, more ...Event) []Event { return append(slices.Clone(given), more...) }
	done := func(p SchedulePlanned, change func(*ScheduleExecuted)) ScheduleExecuted {
		x := ScheduleExecuted{ScheduleID: p.ScheduleID, Kind: p.Kind, State: ScheduleDone, DueTime: p.DueTime}
		if change != nil {
			change(&x)
		}
		return x
	}
	erased := AccountErased{KeyID: strings.Repeat("00", 32)}
	tests := []struct {
		name   string
		given  []Event
		when   Command
		then   []Event
		code   Code
		faults []string
	}{
		{name: "plan", given: []Event{adaCreated}, when: PlanSchedule{ScheduleID: "s", Kind: ScheduleStatusChange, DueTime: hour.Add(1), TargetStatus: StatusDeclined}, code: CodeInvalidRequest, faults: []string{"/dueTime"}},
		{name: "plan ahead", given: []Event{adaCreated}, when: PlanSchedule{ScheduleID: "s", Kind: ScheduleStatusChange, DueTime: hour.Add(time.Hour), TargetStatus: StatusDeclined},
			then: []Event{plannedAt("s", ScheduleStatusChange, hour.Add(time.Hour))}},
		{name: "plan again", given: []Event{adaCreated, plannedAt("s", ScheduleReminder, hour)}, when: PlanSchedule{ScheduleID: "s", Kind: ScheduleReminder, DueTime: hour.Add(time.Hour)}},
		{name: "plan with every fault", given: []Event{adaCreated}, when: PlanSchedule{Kind: "x", DueTime: noon, TargetStatus: StatusPending, ReminderNo: 1, PeriodSeconds: 60},
			code: CodeInvalidRequest, faults: []string{"/dueTime", "/kind", "/periodSeconds", "/reminderNo", "/targetStatus"}},
		{name: "plan a status that schedules cannot set", given: []Event{adaCreated}, when: PlanSchedule{Kind: ScheduleStatusChange, DueTime: hour.Add(time.Hour), TargetStatus: StatusVerified},
			code: CodeInvalidRequest, faults: []string{"/targetStatus"}},
		{name: "plan a status that the system manages", given: []Event{adaCreated}, when: PlanSchedule{Kind: ScheduleStatusChange, DueTime: hour.Add(time.Hour), TargetStatus: StatusDeleted}, code: CodeStatusSystemManaged},
		{name: "plan for a deleted account", given: deleting, when: PlanSchedule{Kind: ScheduleReminder, DueTime: hour.Add(time.Hour)}, code: CodeAccountDeleted},

		{name: "postpone", given: []Event{adaCreated, remind}, when: PostponeSchedule{"r", hour.Add(time.Hour)}, then: []Event{SchedulePostponed{"r", due, hour.Add(time.Hour)}}},
		{name: "postpone to the same", given: []Event{adaCreated, remind}, when: PostponeSchedule{"r", due}},
		{name: "postpone into the past", given: []Event{adaCreated, remind}, when: PostponeSchedule{"r", noon}, code: CodeInvalidRequest, faults: []string{"/dueTime"}},
		{name: "postpone an unknown schedule", given: []Event{adaCreated}, when: PostponeSchedule{"r", hour}, code: CodeScheduleNotFound},
		{name: "postpone an ended schedule", given: []Event{adaCreated, remind, ScheduleCancelled{ScheduleID: "r"}}, when: PostponeSchedule{"r", hour.Add(time.Hour)}, code: CodeScheduleEnded},
		{name: "postpone a deletion", given: deleting, when: PostponeSchedule{"g", hour.Add(time.Hour)}, then: []Event{SchedulePostponed{"g", due, hour.Add(time.Hour)}}},

		{name: "cancel", given: []Event{adaCreated, remind}, when: CancelSchedule{"r"}, then: []Event{ScheduleCancelled{ScheduleID: "r"}}},
		{name: "cancel again", given: []Event{adaCreated, remind, ScheduleCancelled{ScheduleID: "r"}}, when: CancelSchedule{"r"}},
		{name: "cancel an executed schedule", given: []Event{adaCreated, remind, done(remind, nil)}, when: CancelSchedule{"r"}, code: CodeScheduleEnded},
		{name: "cancel the schedule of a deletion", given: deleting, when: CancelSchedule{"g"}, then: []Event{ScheduleCancelled{"g", reasonRestored}, DeletionCancelled{To: StatusPending}}},

		{name: "remind", given: []Event{adaCreated, remind}, when: ExecuteSchedule{"r", due}, then: []Event{done(remind, nil)}},
		{name: "remind twice", given: []Event{adaCreated, remind, done(remind, nil)}, when: ExecuteSchedule{"r", due}},
		{name: "remind at another time", given: []Event{adaCreated, remind}, when: ExecuteSchedule{"r", due.Add(1000)}},
		{name: "remind too early", given: []Event{adaCreated, plannedAt("r", ScheduleReminder, hour.Add(1000))}, when: ExecuteSchedule{"r", hour.Add(1000)}},
		{name: "remind late", given: []Event{adaCreated, plannedAt("r", ScheduleReminder, noon)}, when: ExecuteSchedule{"r", noon},
			then: []Event{done(plannedAt("r", ScheduleReminder, noon), func(x *ScheduleExecuted) { x.Late = true })}},
		{name: "remind every day, two days late", given: []Event{adaCreated, daily}, when: ExecuteSchedule{"r", daily.DueTime},
			then: []Event{done(daily, func(x *ScheduleExecuted) { x.Late, x.NextDueTime = true, daily.DueTime.Add(72*time.Hour) })}},
		{name: "decline", given: []Event{adaCreated, decline}, when: ExecuteSchedule{"s", due}, then: []Event{done(decline, nil), StatusChanged{From: StatusVerified, To: StatusDeclined}}},
		{name: "decline a declined account", given: []Event{adaCreated, decline, StatusChanged{To: StatusDeclined}}, when: ExecuteSchedule{"s", due},
			then: []Event{done(decline, func(x *ScheduleExecuted) { x.State, x.Reason = ScheduleNeedless, "unchanged" })}},
		{name: "decline a combined account", given: []Event{adaCreated, decline, StatusChanged{To: StatusCombined}}, when: ExecuteSchedule{"s", due},
			then: []Event{done(decline, func(x *ScheduleExecuted) { x.State, x.Reason = ScheduleNeedless, "account-combined" })}},
		{name: "decline a deleted account", given: with(deleting, decline), when: ExecuteSchedule{"s", due},
			then: []Event{done(decline, func(x *ScheduleExecuted) { x.State, x.Reason = ScheduleNeedless, "account-deleted" })}},
		{name: "a transition that the status machine refuses", given: []Event{adaCreated, func() Event { p := decline; p.TargetStatus = StatusPending; return p }()}, when: ExecuteSchedule{"s", due},
			then: []Event{done(decline, func(x *ScheduleExecuted) { x.State, x.Reason = ScheduleRefused, "invalid-status-transition" })}},
		{name: "end", given: []Event{adaCreated, end, remind}, when: ExecuteSchedule{"d", due}, then: []Event{done(end, nil), ScheduleCancelled{"r", "erased"}, erased}},

		{name: "become verified", given: []Event{pending, auto, remind}, when: SetStatus{Status: StatusVerified},
			then: []Event{StatusChanged{From: StatusPending, To: StatusVerified}, ScheduleCancelled{"auto", "verified"}}},

		{name: "delete", given: []Event{adaCreated}, when: ScheduleAccountDeletion{"g", 48 * time.Hour},
			then: []Event{plannedAt("g", ScheduleDeletion, hour.Add(48*time.Hour)), DeletionScheduled{"g", StatusVerified, hour.Add(48 * time.Hour)}}},
		{name: "delete again", given: deleting, when: ScheduleAccountDeletion{"h", time.Hour}},
		{name: "delete with too much grace", given: []Event{adaCreated}, when: ScheduleAccountDeletion{"g", MaxGrace + 1}, code: CodeInvalidRequest},
		{name: "change a deleted account", given: deleting, when: UnlinkIdentity{"i1"}, code: CodeAccountDeleted},
		{name: "cancel the deletion", given: deleting, when: CancelAccountDeletion{}, then: []Event{ScheduleCancelled{"g", reasonRestored}, DeletionCancelled{To: StatusPending}}},
		{name: "cancel a deletion that is not scheduled", given: []Event{adaCreated}, when: CancelAccountDeletion{}, code: CodeDeletionNotFound},
		{name: "restore by verifying", given: deleting, when: SetStatus{Status: StatusVerified, Reason: "sorry"},
			then: []Event{ScheduleCancelled{"g", reasonRestored}, DeletionCancelled{StatusVerified, "sorry"}, ScheduleCancelled{"auto", "verified"}}},
		{name: "the deletion is due", given: deleting, when: ExecuteSchedule{"g", due}, then: []Event{done(plannedAt("g", ScheduleDeletion, due), nil), ScheduleCancelled{"auto", "erased"}, erased}},
		{name: "erase at once", given: []Event{adaCreated, remind}, when: EraseAccount{}, then: []Event{ScheduleCancelled{"r", "erased"}, erased}},
		{name: "erase within grace", given: deleting, when: EraseAccount{}, then: []Event{done(plannedAt("g", ScheduleDeletion, due), nil), ScheduleCancelled{"auto", "erased"}, erased}},
		{name: "erase twice", given: []Event{adaCreated, erased}, when: EraseAccount{}, code: CodeAccountErased},
		{name: "complete", given: []Event{adaCreated, erased}, when: CompleteErasure{"00"}, then: []Event{ErasureCompleted{"00"}}},
		{name: "complete twice", given: []Event{adaCreated, erased, ErasureCompleted{"00"}}, when: CompleteErasure{"00"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decide(Setting{Config: NewConfig(), Now: hour}, fold(tt.given...), tt.when)
			decided(t, got, err, tt.then, tt.code, tt.faults)
		})
	}
}

// TestSchedulesKept checks that the account has all planned schedules and the last
// hundred that ended, in the order in which they ended.
func TestSchedulesKept(t *testing.T) {
	events := []Event{adaCreated, plannedAt("stays", ScheduleReminder, noon.Add(time.Hour))}
	for i := range 120 {
		id := fmt.Sprint(i)
		events = append(events, plannedAt(id, ScheduleReminder, noon), ScheduleCancelled{ScheduleID: id})
	}
	a := fold(events...)
	if n := len(a.Schedules); n != keptEnded+1 {
		t.Fatalf("%d schedules, want %d", n, keptEnded+1)
	}
	if first, last, open := a.Schedules[0], a.Schedules[99], a.Schedules[100]; first.ScheduleID != "20" || last.ScheduleID != "119" || open.ScheduleID != "stays" {
		t.Errorf("schedules from %s to %s, then %s; want from 20 to 119, then the planned one", first.ScheduleID, last.ScheduleID, open.ScheduleID)
	}
}

// TestScheduleSetups checks that no change can break the order of setups.
func TestScheduleSetups(t *testing.T) {
	c := NewConfig()
	reminderAt := func(no int, offset string) PutScheduleSetup {
		return PutScheduleSetup{SetupID: fmt.Sprint("r", no), Kind: ScheduleReminder, ReminderNo: no, Offset: offset}
	}
	decline := PutScheduleSetup{SetupID: "decline", Kind: ScheduleStatusChange, TargetStatus: StatusDeclined, Offset: "P10D"}
	end := PutScheduleSetup{SetupID: "end", Kind: ScheduleDeletion, Offset: "P30D"}
	for _, step := range []struct {
		cmd  ConfigCommand
		code Code
	}{
		{reminderAt(2, "P2D"), CodeInvalidRequest}, // a gap
		{reminderAt(1, "P1D"), ""},
		{reminderAt(1, "P1D"), ""}, // changes nothing
		{PutScheduleSetup{SetupID: "other", Kind: ScheduleReminder, ReminderNo: 1, Offset: "P2D"}, CodeInvalidRequest},
		{reminderAt(2, "PT24H"), CodeInvalidRequest}, // not later
		{reminderAt(2, "P2DT1M"), ""},
		{decline, ""},
		{PutScheduleSetup{SetupID: "again", Kind: ScheduleStatusChange, TargetStatus: StatusDeclined, Offset: "P11D"}, CodeInvalidRequest},
		{reminderAt(3, "P10D"), CodeInvalidRequest}, // not before the status change
		{PutScheduleSetup{SetupID: "end", Kind: ScheduleDeletion, Offset: "P9D"}, CodeInvalidRequest},
		{end, ""},
		{PutScheduleSetup{SetupID: "end", Kind: ScheduleDeletion, OffsetSeconds: 31 * 86400}, ""},
		{PutScheduleSetup{SetupID: "end", Kind: ScheduleDeletion, OffsetSeconds: 1, Offset: "P31D"}, CodeInvalidRequest},
		{PutScheduleSetup{SetupID: "end", Kind: ScheduleDeletion, Offset: "P1M"}, CodeInvalidRequest},
		{PutScheduleSetup{SetupID: "end", Kind: ScheduleDeletion}, CodeInvalidRequest},
		{reminderAt(3, "P3D"), ""}, {reminderAt(4, "P4D"), ""}, {reminderAt(5, "P5D"), ""}, {reminderAt(6, "P6D"), CodeInvalidRequest},
		{DeleteScheduleSetup{"r4"}, CodeScheduleSetupOrder},
		{DeleteScheduleSetup{"r5"}, ""}, {DeleteScheduleSetup{"r4"}, ""}, {DeleteScheduleSetup{"r3"}, ""},
		{DeleteScheduleSetup{"r3"}, CodeScheduleSetupNotFound},
		{PutScheduleSetup{SetupID: "r2", Kind: ScheduleReminder, ReminderNo: 2, Offset: "P2DT1M", PeriodSeconds: minPeriod - 1}, CodeInvalidRequest},
		{PutScheduleSetup{SetupID: "r2", Kind: ScheduleReminder, ReminderNo: 2, Offset: "P2DT1M", PeriodSeconds: minPeriod}, ""},
		{PutScheduleSetup{SetupID: "x", Kind: ScheduleStatusChange, TargetStatus: StatusCombined, Offset: "P1D"}, CodeStatusSystemManaged},
	} {
		events, err := step.cmd.decide(c, noon)
		if CodeOf(err) != step.code || (err == nil) != (step.code == "") {
			t.Fatalf("%+v = %v, want code %q", step.cmd, err, step.code)
		}
		c = c.clone()
		for _, e := range events {
			c.Evolve(Entry{Type: e.eventType(), Revision: c.Revision + 1, Event: e})
		}
	}
	ada := NewIdentity{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}
	register := CreateAccount{Origin: OriginRegistered, Identities: []NewIdentity{ada}}
	plan := func(cmd CreateAccount) (planned []SchedulePlanned) {
		events, err := Decide(Setting{Config: c, Now: noon}, NewAccount("s"), cmd)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events[1:] {
			if p, ok := e.(SchedulePlanned); ok {
				planned = append(planned, p)
			}
		}
		return planned
	}
	first, second := plan(register), plan(register)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("a repeated creation plans other schedules:\n%s", diff)
	}
	var got []string
	for _, p := range first {
		got = append(got, fmt.Sprint(p.SetupID, " ", p.Kind, " ", p.DueTime.Sub(noon), " ", p.Origin, " ", p.PeriodSeconds))
	}
	want := []string{"r1 reminder 24h0m0s auto 0", "r2 reminder 48h1m0s auto 86400", "decline status_change 240h0m0s auto 0", "end deletion 744h0m0s auto 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("planned (-want +got):\n%s", diff)
	}
	register.Status = StatusVerified
	if p := plan(register); len(p) != 0 {
		t.Errorf("a VERIFIED account has the schedules %v", p)
	}
}

// TestErase checks that an erased account keeps no data, releases its identifiers and
// accepts no further command, whether a schedule or a command erased it.
func TestErase(t *testing.T) {
	l := newLedger(t)
	ada := CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{{IdentityID: "i1", Provider: ProviderSelf, Profile: adaProfile}}}
	mustExecute(t, l, by("c1", "h1"), "a", ada)
	got := mustExecute(t, l, by("c2", "h2"), "a", EraseAccount{})
	if a := got.State; !a.Erased() || len(a.UserIDs) != 0 || len(a.Identities) != 0 || a.Status != StatusDeleted {
		t.Errorf("erased: %+v", a)
	}
	kid := got.Events[0].Event.(AccountErased).KeyID
	if strings.Trim(kid, "0") == "" || got.Events[0].keyID != (eventstore.KeyID{}) {
		t.Errorf("the erasure names key %q and is sealed under %x; want a key and not sealed", kid, got.Events[0].keyID)
	}
	mustExecute(t, l, by("c3", "h3"), "b", ada)
	for range 2 {
		if _, err := l.Execute(t.Context(), by("c2", "h2"), "a", EraseAccount{}); CodeOf(err) != CodeAccountErased {
			t.Errorf("erase again = %v, want %s", err, CodeAccountErased)
		}
		l.cache.InvalidateAll()
	}
	if done := mustExecute(t, l, by("", ""), "a", CompleteErasure{kid}); len(done.Events) != 1 {
		t.Errorf("complete: %v", done.Events)
	}
	if done := mustExecute(t, l, by("", ""), "a", CompleteErasure{kid}); len(done.Events) != 0 {
		t.Errorf("complete again: %v", done.Events)
	}
}

func (SchedulePlanned) sample() sample {
	return sample{event: SchedulePlanned{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", Kind: ScheduleReminder, DueTime: goldenTime, TargetStatus: StatusDeclined,
		ReminderNo: 1, PeriodSeconds: 86400, Origin: ScheduleAuto, SetupID: "first-reminder"},
		clear: "ScheduleID Kind DueTime TargetStatus ReminderNo PeriodSeconds Origin SetupID"}
}

func (SchedulePostponed) sample() sample {
	return sample{event: SchedulePostponed{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", From: goldenTime, DueTime: goldenTime.Add(time.Hour)},
		clear: "ScheduleID From DueTime"}
}

func (ScheduleCancelled) sample() sample {
	return sample{event: ScheduleCancelled{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", Reason: "verified"},
		clear: "ScheduleID Reason"}
}

func (ScheduleExecuted) sample() sample {
	return sample{event: ScheduleExecuted{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", Kind: ScheduleReminder, State: ScheduleDone, Reason: "unchanged",
		DueTime: goldenTime, Late: true, ReminderNo: 1, NextDueTime: goldenTime.Add(24 * time.Hour)},
		clear: "ScheduleID Kind State Reason DueTime Late ReminderNo NextDueTime"}
}
