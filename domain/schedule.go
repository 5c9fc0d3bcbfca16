package domain

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/uuid"
)

// ScheduleKind is what happens to an account when a schedule is due.
type ScheduleKind string

// The kinds of schedules.
const (
	ScheduleReminder     ScheduleKind = "reminder"      // external systems are told to remind the person
	ScheduleStatusChange ScheduleKind = "status_change" // the account gets another status
	ScheduleDeletion     ScheduleKind = "deletion"      // the account ends, see AccountErased
)

// ScheduleKinds lists every kind.
var ScheduleKinds = []ScheduleKind{ScheduleReminder, ScheduleStatusChange, ScheduleDeletion}

// ScheduleState is where a schedule stands.
type ScheduleState string

// The states of a schedule. All but the first are final.
const (
	SchedulePending  ScheduleState = "planned"
	ScheduleDone     ScheduleState = "executed"
	ScheduleAborted  ScheduleState = "cancelled"
	ScheduleNeedless ScheduleState = "skipped" // there was nothing to do, or the account had ended
	ScheduleRefused  ScheduleState = "failed"  // the account's rules refused it
)

// The origins of schedules.
const (
	ScheduleAuto   = "auto"   // a setup planned it when the account was created
	ScheduleManual = "manual" // somebody planned it for this account
)

// Schedule is what is planned for an account, or has been.
type Schedule struct {
	ScheduleID    string        `json:"scheduleId"`
	Kind          ScheduleKind  `json:"kind"`
	DueTime       time.Time     `json:"dueTime"` // of a periodic one, the next time
	State         ScheduleState `json:"status"`
	TargetStatus  Status        `json:"targetStatus,omitzero"`  // of a status change
	ReminderNo    int           `json:"reminderNo,omitzero"`    // of a reminder
	PeriodSeconds int64         `json:"periodSeconds,omitzero"` // it comes again, until it is cancelled
	Origin        string        `json:"origin"`
	SetupID       string        `json:"setupId,omitzero"`      // of an auto one
	ExecutedTime  time.Time     `json:"executedTime,omitzero"` // of a periodic one, the last time
	Late          bool          `json:"late,omitzero"`         // it was then overdue by more than the ledger promises
	Reason        string        `json:"reason,omitzero"`       // why it was cancelled, skipped or failed, as a code
}

// Limits of an account's schedules.
const (
	maxPlanned = 100                        // at once
	keptEnded  = 100                        // in the account; older ones are in its history
	minPeriod  = 24 * 60 * 60               // seconds
	maxAhead   = 100 * 366 * 24 * time.Hour // a schedule further in the future is a mistake
	onTime     = time.Second                // what is executed later than this after its time is late
)

// Reason codes of schedules that ended without an effect of their own.
const (
	reasonVerified  = "verified"           // the account became VERIFIED, so what was to lead it there is needless
	reasonRestored  = "deletion-cancelled" // the deletion it was to execute
	reasonCombined  = "combined"           // the account was merged into another
	reasonErased    = "erased"             // the account ended first
	reasonUnchanged = "unchanged"          // the account has the status already
)

// SchedulePlanned plans something for the account.
type SchedulePlanned struct {
	ScheduleID    string       `json:"scheduleId" pii:"clear"`
	Kind          ScheduleKind `json:"kind" pii:"clear"`
	DueTime       time.Time    `json:"dueTime" pii:"clear"`
	TargetStatus  Status       `json:"targetStatus,omitzero" pii:"clear"`
	ReminderNo    int          `json:"reminderNo,omitzero" pii:"clear"`
	PeriodSeconds int64        `json:"periodSeconds,omitzero" pii:"clear"`
	Origin        string       `json:"origin" pii:"clear"`
	SetupID       string       `json:"setupId,omitzero" pii:"clear"`
}

func (SchedulePlanned) eventType() string { return "account.schedule-planned.v1" }

func (e SchedulePlanned) evolve(a Account, _ Entry) Account {
	a.Schedules = append(slices.Clip(a.Schedules), Schedule{
		ScheduleID: e.ScheduleID, Kind: e.Kind, DueTime: e.DueTime, State: SchedulePending, TargetStatus: e.TargetStatus,
		ReminderNo: e.ReminderNo, PeriodSeconds: e.PeriodSeconds, Origin: e.Origin, SetupID: e.SetupID,
	})
	return a
}

func (e SchedulePlanned) public(x Entry) []publicEvent {
	return []publicEvent{{"SCHEDULE_PLANNED", schedulePlanned{x.Sub(), e}}}
}

func (SchedulePlanned) catalogue() []PublicType {
	return []PublicType{{Name: "SCHEDULE_PLANNED", When: "something is planned for the account", Data: schedulePlanned{}}}
}

type schedulePlanned struct {
	Sub string `json:"sub"`
	SchedulePlanned
}

// SchedulePostponed moves a schedule to another time, later or earlier.
type SchedulePostponed struct {
	ScheduleID string    `json:"scheduleId" pii:"clear"`
	From       time.Time `json:"from" pii:"clear"`
	DueTime    time.Time `json:"dueTime" pii:"clear"`
}

func (SchedulePostponed) eventType() string { return "account.schedule-postponed.v1" }

func (e SchedulePostponed) evolve(a Account, _ Entry) Account {
	return a.reschedule(e.ScheduleID, func(s *Schedule) { s.DueTime = e.DueTime })
}

func (e SchedulePostponed) public(x Entry) []publicEvent {
	return []publicEvent{{"SCHEDULE_POSTPONED", schedulePostponed{x.Sub(), e}}}
}

func (SchedulePostponed) catalogue() []PublicType {
	return []PublicType{{Name: "SCHEDULE_POSTPONED", When: "what is planned gets another time", Data: schedulePostponed{}}}
}

type schedulePostponed struct {
	Sub string `json:"sub"`
	SchedulePostponed
}

// ScheduleCancelled ends a schedule before its time.
type ScheduleCancelled struct {
	ScheduleID string `json:"scheduleId" pii:"clear"`
	Reason     string `json:"reason,omitzero" pii:"clear"` // a code; none where somebody cancelled it as such
}

func (ScheduleCancelled) eventType() string { return "account.schedule-cancelled.v1" }

func (e ScheduleCancelled) evolve(a Account, _ Entry) Account {
	return a.reschedule(e.ScheduleID, func(s *Schedule) { s.State, s.Reason = ScheduleAborted, e.Reason })
}

func (e ScheduleCancelled) public(x Entry) []publicEvent {
	return []publicEvent{{"SCHEDULE_CANCELLED", scheduleCancelled{x.Sub(), e}}}
}

func (ScheduleCancelled) catalogue() []PublicType {
	return []PublicType{{Name: "SCHEDULE_CANCELLED", When: "what is planned is given up", Data: scheduleCancelled{}}}
}

type scheduleCancelled struct {
	Sub string `json:"sub"`
	ScheduleCancelled
}

// ScheduleExecuted marks a schedule as done. What it did to the account is in
// the events of the same commit.
type ScheduleExecuted struct {
	ScheduleID  string        `json:"scheduleId" pii:"clear"`
	Kind        ScheduleKind  `json:"kind" pii:"clear"`
	State       ScheduleState `json:"status" pii:"clear"` // executed, skipped or failed
	Reason      string        `json:"reason,omitzero" pii:"clear"`
	DueTime     time.Time     `json:"dueTime" pii:"clear"`
	Late        bool          `json:"late,omitzero" pii:"clear"`
	ReminderNo  int           `json:"reminderNo,omitzero" pii:"clear"`
	NextDueTime time.Time     `json:"nextDueTime,omitzero" pii:"clear"` // of a periodic one
}

func (ScheduleExecuted) eventType() string { return "account.schedule-executed.v1" }

func (e ScheduleExecuted) evolve(a Account, x Entry) Account {
	return a.reschedule(e.ScheduleID, func(s *Schedule) {
		s.ExecutedTime, s.Late, s.Reason = x.Time, e.Late, e.Reason
		if e.NextDueTime.IsZero() {
			s.State = e.State
		} else {
			s.DueTime = e.NextDueTime
		}
	})
}

func (e ScheduleExecuted) public(x Entry) []publicEvent {
	events := []publicEvent{{"SCHEDULE_EXECUTED", scheduleExecuted{x.Sub(), e}}}
	if e.Kind == ScheduleReminder && e.State == ScheduleDone {
		events = append(events, publicEvent{"USER_VERIFICATION_REMINDER", reminder{x.Sub(), e.ScheduleID, e.ReminderNo, e.DueTime}})
	}
	return events
}

func (ScheduleExecuted) catalogue() []PublicType {
	return []PublicType{
		{Name: "SCHEDULE_EXECUTED", When: "what was planned is done, skipped or refused", Data: scheduleExecuted{}},
		{Name: "USER_VERIFICATION_REMINDER", When: "a reminder is due: remind the person", Data: reminder{}},
	}
}

type scheduleExecuted struct {
	Sub string `json:"sub"`
	ScheduleExecuted
}

type reminder struct {
	Sub        string    `json:"sub"`
	ScheduleID string    `json:"scheduleId"`
	ReminderNo int       `json:"reminderNo,omitzero"`
	DueTime    time.Time `json:"dueTime"`
}

// reschedule changes one planned schedule of a. Those that have ended come
// first, in the order of their ends, and the oldest of them drop out.
func (a Account) reschedule(id string, change func(*Schedule)) Account {
	i := slices.IndexFunc(a.Schedules, func(s Schedule) bool { return s.ScheduleID == id && s.State == SchedulePending })
	if i < 0 {
		return a
	}
	a.Schedules = slices.Clone(a.Schedules)
	change(&a.Schedules[i])
	if s := a.Schedules[i]; s.State != SchedulePending {
		a.Schedules = slices.Delete(a.Schedules, i, i+1)
		ended := a.ended()
		a.Schedules = slices.Insert(a.Schedules, ended, s)
		a.Schedules = a.Schedules[max(0, ended+1-keptEnded):]
	}
	return a
}

// ended is how many schedules of a have ended.
func (a Account) ended() int {
	i := slices.IndexFunc(a.Schedules, func(s Schedule) bool { return s.State == SchedulePending })
	if i < 0 {
		return len(a.Schedules)
	}
	return i
}

// planned are the schedules of a that have not ended.
func (a Account) planned() []Schedule { return a.Schedules[a.ended():] }

// Schedule returns the schedule with this id.
func (a Account) Schedule(id string) (Schedule, bool) {
	i := slices.IndexFunc(a.Schedules, func(s Schedule) bool { return s.ScheduleID == id })
	if i < 0 {
		return Schedule{}, false
	}
	return a.Schedules[i], true
}

// plannedSchedule returns the planned schedule with this id.
func (a Account) plannedSchedule(id string) (Schedule, error) {
	s, ok := a.Schedule(id)
	switch {
	case !ok:
		return s, refuse(CodeScheduleNotFound, "The account has no schedule with this id.")
	case s.State != SchedulePending:
		return s, refuse(CodeScheduleEnded, "The schedule is %s.", s.State)
	}
	return s, nil
}

// cancelPlanned cancels the planned schedules that which selects.
func cancelPlanned(a Account, reason string, which func(Schedule) bool) []Event {
	var events []Event
	for _, s := range a.planned() {
		if which(s) {
			events = append(events, ScheduleCancelled{s.ScheduleID, reason})
		}
	}
	return events
}

// autoSchedules plans, for an account that is being created and not VERIFIED,
// what the setups say. Their ids follow from account and setup. The time
// counts from the creation in this ledger: what an import says of older days
// must not make everything due at once.
func autoSchedules(s Setting, sub string, status Status) []Event {
	if status == StatusVerified {
		return nil
	}
	var events []Event
	for _, setup := range s.Config.setups() {
		events = append(events, SchedulePlanned{
			ScheduleID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(sub+"/"+setup.SetupID)).String(), Kind: setup.Kind,
			DueTime: s.Now.Add(time.Duration(setup.OffsetSeconds) * time.Second), TargetStatus: setup.TargetStatus,
			ReminderNo: setup.ReminderNo, PeriodSeconds: setup.PeriodSeconds, Origin: ScheduleAuto, SetupID: setup.SetupID,
		})
	}
	return events
}

// scheduleRules are the rules that schedules and setups of them share.
func (f *faults) scheduleRules(kind ScheduleKind, target Status, reminderNo int, period int64) {
	if !slices.Contains(ScheduleKinds, kind) {
		f.add("/kind", "must be reminder, status_change or deletion")
	}
	switch {
	case kind != ScheduleStatusChange && target != "":
		f.add("/targetStatus", "is of a status_change")
	case kind == ScheduleStatusChange && target != StatusDeclined:
		f.add("/targetStatus", "must be DECLINED: a schedule leads to no other status")
	}
	if kind != ScheduleReminder && reminderNo != 0 {
		f.add("/reminderNo", "is of a reminder")
	}
	switch {
	case period == 0:
	case kind == ScheduleDeletion:
		f.add("/periodSeconds", "a deletion happens once")
	case period < minPeriod || period > int64(maxAhead/time.Second):
		f.add("/periodSeconds", "at least %d seconds, a day, and at most 100 years", minPeriod)
	}
}

// dueTime is a time at which something may be due, seen from now.
func (f *faults) dueTime(pointer string, due, now time.Time) {
	switch {
	case !due.After(now):
		f.add(pointer, "must be in the future")
	case due.Sub(now) > maxAhead:
		f.add(pointer, "must be within 100 years")
	}
}

// PlanSchedule plans something for the account.
type PlanSchedule struct {
	ScheduleID    string // made by the caller
	Kind          ScheduleKind
	DueTime       time.Time
	TargetStatus  Status
	ReminderNo    int
	PeriodSeconds int64
}

func (PlanSchedule) command() {}

func (c PlanSchedule) decide(s Setting, a Account) ([]Event, error) {
	if c.TargetStatus.systemManaged() {
		return nil, refuse(CodeStatusSystemManaged, "The status %s is set by merging or deleting, not by a schedule.", c.TargetStatus)
	}
	var f faults
	f.scheduleRules(c.Kind, c.TargetStatus, c.ReminderNo, c.PeriodSeconds)
	due := c.DueTime.UTC().Truncate(time.Microsecond)
	f.dueTime("/dueTime", due, s.Now)
	if c.ReminderNo < 0 || c.ReminderNo > maxPlanned {
		f.add("/reminderNo", "1 to %d", maxPlanned)
	}
	if len(a.planned()) >= maxPlanned {
		f.add("", "an account has at most %d planned schedules", maxPlanned)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if _, exists := a.Schedule(c.ScheduleID); exists {
		return nil, nil
	}
	return []Event{SchedulePlanned{ScheduleID: c.ScheduleID, Kind: c.Kind, DueTime: due, TargetStatus: c.TargetStatus,
		ReminderNo: c.ReminderNo, PeriodSeconds: c.PeriodSeconds, Origin: ScheduleManual}}, nil
}

// PostponeSchedule moves a planned schedule to another time; that of a
// deletion, too.
type PostponeSchedule struct {
	ScheduleID string
	DueTime    time.Time
}

func (PostponeSchedule) command() {}

func (PostponeSchedule) admits(s Status) bool { return s == StatusDeleted }

func (c PostponeSchedule) decide(s Setting, a Account) ([]Event, error) {
	schedule, err := a.plannedSchedule(c.ScheduleID)
	if err != nil {
		return nil, err
	}
	due := c.DueTime.UTC().Truncate(time.Microsecond)
	if due.Equal(schedule.DueTime) {
		return nil, nil
	}
	var f faults
	f.dueTime("/dueTime", due, s.Now)
	if err := f.err(); err != nil {
		return nil, err
	}
	return []Event{SchedulePostponed{c.ScheduleID, schedule.DueTime, due}}, nil
}

// CancelSchedule cancels a planned schedule. To cancel that of a scheduled
// deletion is to cancel the deletion.
type CancelSchedule struct{ ScheduleID string }

func (CancelSchedule) command() {}

func (CancelSchedule) admits(s Status) bool { return s == StatusDeleted }

func (c CancelSchedule) decide(_ Setting, a Account) ([]Event, error) {
	schedule, err := a.plannedSchedule(c.ScheduleID)
	switch {
	case schedule.State == ScheduleAborted:
		return nil, nil
	case err != nil:
		return nil, err
	case a.Deletion.ScheduleID == c.ScheduleID:
		return restore(a, a.Deletion.From, ""), nil
	}
	return []Event{ScheduleCancelled{ScheduleID: c.ScheduleID}}, nil
}

// ExecuteSchedule does what is due. If the schedule is not planned any more,
// not for this time, or not due yet, it changes nothing: however often it is
// asked, and by whom, its effect comes once. What the account's rules refuse
// ends the schedule too.
type ExecuteSchedule struct {
	ScheduleID string
	DueTime    time.Time // as the caller knows it
}

func (ExecuteSchedule) command() {}

// admits any state: what is due then has its end, too.
func (ExecuteSchedule) admits(Status) bool { return true }

// due is the schedule to execute, if it is to be executed.
func (c ExecuteSchedule) due(a Account, now time.Time) (Schedule, bool) {
	s, ok := a.Schedule(c.ScheduleID)
	return s, ok && s.State == SchedulePending && s.DueTime.Equal(c.DueTime) && !s.DueTime.After(now)
}

func (c ExecuteSchedule) decide(s Setting, a Account) ([]Event, error) {
	events, _, err := c.decideJoint(s, a, nil)
	return events, err
}

// others are the accounts that end with this one, if that is what is due.
func (c ExecuteSchedule) others(a Account) []string {
	if s, ok := a.Schedule(c.ScheduleID); ok && s.Kind == ScheduleDeletion && s.State == SchedulePending {
		return erasures(a)
	}
	return nil
}

func (c ExecuteSchedule) decideJoint(s Setting, a Account, others []Account) ([]Event, [][]Event, error) {
	none := make([][]Event, len(others))
	schedule, ok := c.due(a, s.Now)
	if !ok {
		return nil, none, nil
	}
	mark := ScheduleExecuted{ScheduleID: schedule.ScheduleID, Kind: schedule.Kind, State: ScheduleDone, DueTime: schedule.DueTime,
		Late: s.Now.Sub(schedule.DueTime) > onTime, ReminderNo: schedule.ReminderNo}
	if schedule.PeriodSeconds > 0 {
		mark.NextDueTime = nextDue(schedule, s.Now)
	}
	switch {
	case a.Status == StatusCombined || a.Status == StatusDeleted && a.Deletion.ScheduleID != schedule.ScheduleID:
		mark.State, mark.Reason = ScheduleNeedless, string(CodeAccountDeleted)
		if a.Status == StatusCombined {
			mark.Reason = string(CodeAccountCombined)
		}
	case schedule.Kind == ScheduleDeletion:
		own, rest := erase(a, others, mark)
		return own, rest, nil
	case schedule.Kind == ScheduleStatusChange && a.Status == schedule.TargetStatus:
		mark.State, mark.Reason = ScheduleNeedless, reasonUnchanged
	case schedule.Kind == ScheduleStatusChange && !slices.Contains(statusBySchedule[a.Status], schedule.TargetStatus):
		mark.State, mark.Reason = ScheduleRefused, string(CodeInvalidStatusTransition)
	case schedule.Kind == ScheduleStatusChange:
		return append([]Event{mark}, statusChange(a, schedule.TargetStatus, "")...), none, nil
	}
	return []Event{mark}, none, nil
}

// nextDue is when a periodic schedule is due after now. Times that were
// missed are not made up for.
func nextDue(s Schedule, now time.Time) time.Time {
	period := time.Duration(s.PeriodSeconds) * time.Second
	missed := max(0, now.Sub(s.DueTime)) / period
	return s.DueTime.Add((missed + 1) * period)
}

// BySetup orders setups as they fall due: by time, then by id.
func BySetup(a, b ScheduleSetup) int {
	return cmp.Or(cmp.Compare(a.OffsetSeconds, b.OffsetSeconds), cmp.Compare(a.SetupID, b.SetupID))
}
