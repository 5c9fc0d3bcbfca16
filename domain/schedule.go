package domain

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/uuid"
)

// ScheduleKind says what a schedule does to an account when it is due.
type ScheduleKind string

// The kinds of schedules.
const (
	ScheduleReminder     ScheduleKind = "reminder"      // external systems receive an event and remind the person
	ScheduleStatusChange ScheduleKind = "status_change" // the account gets another status
	ScheduleDeletion     ScheduleKind = "deletion"      // the account is erased, see AccountErased
)

// ScheduleKinds lists every kind.
var ScheduleKinds = []ScheduleKind{ScheduleReminder, ScheduleStatusChange, ScheduleDeletion}

// ScheduleState is the state of a schedule.
type ScheduleState string

// The states of a schedule. All but the first are final.
const (
	SchedulePending  ScheduleState = "planned"
	ScheduleDone     ScheduleState = "executed"
	ScheduleAborted  ScheduleState = "cancelled"
	ScheduleNeedless ScheduleState = "skipped" // it had nothing to change, or the account had ended
	ScheduleRefused  ScheduleState = "failed"  // the account's rules refused it
)

// The origins of schedules.
const (
	ScheduleAuto   = "auto"   // a setup planned it when the account was created
	ScheduleManual = "manual" // a caller planned it for this account
)

// Schedule is a planned or ended schedule of an account.
type Schedule struct {
	ScheduleID    string        `json:"scheduleId" doc:"The schedule's id."`
	Kind          ScheduleKind  `json:"kind" doc:"reminder, status_change or deletion."`
	DueTime       time.Time     `json:"dueTime" doc:"When the schedule is due; for a periodic one, the next time."`
	State         ScheduleState `json:"status" doc:"planned, executed, cancelled, skipped, or failed: the account's rules refused it."`
	TargetStatus  Status        `json:"targetStatus,omitzero" doc:"With kind status_change: the new status."`
	ReminderNo    int           `json:"reminderNo,omitzero" doc:"With kind reminder: the reminder's number."`
	PeriodSeconds int64         `json:"periodSeconds,omitzero" doc:"The schedule repeats at this interval in seconds until it is cancelled."`
	Origin        string        `json:"origin" doc:"auto: planned by a setup when the account was created; manual: planned for this account."`
	SetupID       string        `json:"setupId,omitzero" doc:"With origin auto: the schedule setup."`
	ExecutedTime  time.Time     `json:"executedTime,omitzero" doc:"When the schedule was executed, skipped or refused; for a periodic one, the last time."`
	Late          bool          `json:"late,omitzero" doc:"Whether the execution was later than the ledger guarantees, because the server was down or busy."`
	Reason        string        `json:"reason,omitzero" doc:"Why the schedule was cancelled, skipped or failed, as a code."`
}

// Limits of an account's schedules.
const (
	maxPlanned = 100                        // planned schedules
	keptEnded  = 100                        // ended schedules; the history has older ones
	minPeriod  = 24 * 60 * 60               // seconds
	maxAhead   = 100 * 366 * 24 * time.Hour // a schedule further in the future is a mistake
	onTime     = time.Second                // a schedule executed later than this after its due time is late
)

// Reason codes of schedules that ended without an effect.
const (
	reasonVerified  = "verified"           // the account became VERIFIED, which the schedule was to bring about
	reasonRestored  = "deletion-cancelled" // the deletion that it would have executed was cancelled
	reasonCombined  = "combined"           // the account was merged into another
	reasonErased    = "erased"             // the account was erased first
	reasonUnchanged = "unchanged"          // the account had the target status already
)

// SchedulePlanned plans a schedule for the account.
type SchedulePlanned struct {
	ScheduleID    string       `json:"scheduleId" pii:"clear" doc:"The schedule's id."`
	Kind          ScheduleKind `json:"kind" pii:"clear" doc:"reminder, status_change or deletion."`
	DueTime       time.Time    `json:"dueTime" pii:"clear" doc:"When the schedule is due."`
	TargetStatus  Status       `json:"targetStatus,omitzero" pii:"clear" doc:"With kind status_change: the new status."`
	ReminderNo    int          `json:"reminderNo,omitzero" pii:"clear" doc:"With kind reminder: the reminder's number."`
	PeriodSeconds int64        `json:"periodSeconds,omitzero" pii:"clear" doc:"The schedule repeats at this interval in seconds until it is cancelled."`
	Origin        string       `json:"origin" pii:"clear" doc:"auto: planned by a setup when the account was created; manual: planned for this account."`
	SetupID       string       `json:"setupId,omitzero" pii:"clear" doc:"With origin auto: the schedule setup."`
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
	return []PublicType{{Name: "SCHEDULE_PLANNED", When: "a schedule is planned for the account", Data: schedulePlanned{}}}
}

type schedulePlanned struct {
	Sub string `json:"sub" doc:"The account."`
	SchedulePlanned
}

// SchedulePostponed moves a schedule to another time, later or earlier.
type SchedulePostponed struct {
	ScheduleID string    `json:"scheduleId" pii:"clear" doc:"The schedule's id."`
	From       time.Time `json:"from" pii:"clear" doc:"The previous due time."`
	DueTime    time.Time `json:"dueTime" pii:"clear" doc:"The new due time."`
}

func (SchedulePostponed) eventType() string { return "account.schedule-postponed.v1" }

func (e SchedulePostponed) evolve(a Account, _ Entry) Account {
	return a.reschedule(e.ScheduleID, func(s *Schedule) { s.DueTime = e.DueTime })
}

func (e SchedulePostponed) public(x Entry) []publicEvent {
	return []publicEvent{{"SCHEDULE_POSTPONED", schedulePostponed{x.Sub(), e}}}
}

func (SchedulePostponed) catalogue() []PublicType {
	return []PublicType{{Name: "SCHEDULE_POSTPONED", When: "a schedule is moved to another time", Data: schedulePostponed{}}}
}

type schedulePostponed struct {
	Sub string `json:"sub" doc:"The account."`
	SchedulePostponed
}

// ScheduleCancelled ends a planned schedule.
type ScheduleCancelled struct {
	ScheduleID string `json:"scheduleId" pii:"clear" doc:"The schedule's id."`
	Reason     string `json:"reason,omitzero" pii:"clear" doc:"Why the schedule was cancelled, as a code."` // empty if a caller cancelled it
}

func (ScheduleCancelled) eventType() string { return "account.schedule-cancelled.v1" }

func (e ScheduleCancelled) evolve(a Account, _ Entry) Account {
	return a.reschedule(e.ScheduleID, func(s *Schedule) { s.State, s.Reason = ScheduleAborted, e.Reason })
}

func (e ScheduleCancelled) public(x Entry) []publicEvent {
	return []publicEvent{{"SCHEDULE_CANCELLED", scheduleCancelled{x.Sub(), e}}}
}

func (ScheduleCancelled) catalogue() []PublicType {
	return []PublicType{{Name: "SCHEDULE_CANCELLED", When: "a schedule is cancelled", Data: scheduleCancelled{}}}
}

type scheduleCancelled struct {
	Sub string `json:"sub" doc:"The account."`
	ScheduleCancelled
}

// ScheduleExecuted records the execution of a schedule. Other events of the same
// commit record its effect on the account.
type ScheduleExecuted struct {
	ScheduleID  string        `json:"scheduleId" pii:"clear" doc:"The schedule's id."`
	Kind        ScheduleKind  `json:"kind" pii:"clear" doc:"reminder, status_change or deletion."`
	State       ScheduleState `json:"status" pii:"clear" doc:"executed, skipped, or failed: the account's rules refused it."`
	Reason      string        `json:"reason,omitzero" pii:"clear" doc:"Why the schedule was skipped or failed, as a code."`
	DueTime     time.Time     `json:"dueTime" pii:"clear" doc:"When the schedule was due."`
	Late        bool          `json:"late,omitzero" pii:"clear" doc:"Whether the execution was later than the ledger guarantees, because the server was down or busy."`
	ReminderNo  int           `json:"reminderNo,omitzero" pii:"clear" doc:"With kind reminder: the reminder's number."`
	NextDueTime time.Time     `json:"nextDueTime,omitzero" pii:"clear" doc:"For a periodic schedule: when it is due next."`
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
		{Name: "SCHEDULE_EXECUTED", When: "a schedule is executed, skipped or refused", Data: scheduleExecuted{}},
		{Name: "USER_VERIFICATION_REMINDER", When: "a reminder is due: remind the person", Data: reminder{}},
	}
}

type scheduleExecuted struct {
	Sub string `json:"sub" doc:"The account."`
	ScheduleExecuted
}

type reminder struct {
	Sub        string    `json:"sub" doc:"The account."`
	ScheduleID string    `json:"scheduleId" doc:"The schedule's id."`
	ReminderNo int       `json:"reminderNo,omitzero" doc:"The reminder's number."`
	DueTime    time.Time `json:"dueTime" doc:"When the reminder was due."`
}

// reschedule changes one planned schedule of a. If that ends it, it moves behind
// the other ended schedules, which come first, and the oldest of these drops out.
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

// ended returns the number of a's schedules that have ended.
func (a Account) ended() int {
	i := slices.IndexFunc(a.Schedules, func(s Schedule) bool { return s.State == SchedulePending })
	if i < 0 {
		return len(a.Schedules)
	}
	return i
}

// planned returns the schedules of a that have not ended.
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
		return s, refuse(CodeScheduleEnded, "The schedule is %s, so it cannot change.", s.State)
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

// autoSchedules plans the schedules of the setups for a new account that is not
// VERIFIED. Their ids follow from account and setup. Offsets count from the
// creation in this ledger: with the original creation time of imported accounts,
// all their schedules would be due at once.
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

// scheduleRules checks the rules that schedules and setups share.
func (f *faults) scheduleRules(kind ScheduleKind, target Status, reminderNo int, period int64) {
	if !slices.Contains(ScheduleKinds, kind) {
		f.add("/kind", "must be reminder, status_change or deletion")
	}
	switch {
	case kind != ScheduleStatusChange && target != "":
		f.add("/targetStatus", "only allowed with kind status_change")
	case kind == ScheduleStatusChange && target != StatusDeclined:
		f.add("/targetStatus", "must be DECLINED, the only status a schedule can set")
	}
	if kind != ScheduleReminder && reminderNo != 0 {
		f.add("/reminderNo", "only allowed with kind reminder")
	}
	switch {
	case period == 0:
	case kind == ScheduleDeletion:
		f.add("/periodSeconds", "not allowed with kind deletion")
	case period < minPeriod || period > int64(maxAhead/time.Second):
		f.add("/periodSeconds", "must be at least %d seconds (a day) and at most 100 years", minPeriod)
	}
}

// dueTime checks the due time of a schedule.
func (f *faults) dueTime(pointer string, due, now time.Time) {
	switch {
	case !due.After(now):
		f.add(pointer, "must be in the future")
	case due.Sub(now) > maxAhead:
		f.add(pointer, "must be within 100 years")
	}
}

// PlanSchedule plans a schedule for the account.
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
		f.add("/reminderNo", "must be 1 to %d", maxPlanned)
	}
	if len(a.planned()) >= maxPlanned {
		f.add("", "an account can have at most %d planned schedules", maxPlanned)
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

// PostponeSchedule moves a planned schedule to another time, also that of a
// scheduled deletion.
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

// CancelSchedule cancels a planned schedule. If that is the schedule of a scheduled
// deletion, it cancels the deletion.
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

// ExecuteSchedule executes a due schedule. If the schedule is no longer planned,
// was moved to another time or is not due yet, the command changes nothing: so
// repeated and concurrent commands have one effect. If the account's rules refuse
// the effect, the schedule ends as failed.
type ExecuteSchedule struct {
	ScheduleID string
	DueTime    time.Time // as the caller knows it
}

func (ExecuteSchedule) command() {}

func (ExecuteSchedule) proven() {}

// admits accepts every status: on an ended account the schedule ends as skipped.
func (ExecuteSchedule) admits(Status) bool { return true }

// due returns the schedule, and whether it has to be executed now.
func (c ExecuteSchedule) due(a Account, now time.Time) (Schedule, bool) {
	s, ok := a.Schedule(c.ScheduleID)
	return s, ok && s.State == SchedulePending && s.DueTime.Equal(c.DueTime) && !s.DueTime.After(now)
}

func (c ExecuteSchedule) decide(s Setting, a Account) ([]Event, error) {
	events, _, err := c.decideJoint(s, a, nil)
	return events, err
}

// others returns the accounts that are erased with a, if the schedule is a deletion.
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

// nextDue returns the first time after now at which a periodic schedule is due. It
// skips the times that were missed.
func nextDue(s Schedule, now time.Time) time.Time {
	period := time.Duration(s.PeriodSeconds) * time.Second
	missed := max(0, now.Sub(s.DueTime)) / period
	return s.DueTime.Add((missed + 1) * period)
}

// BySetup orders setups by the time at which they fall due, then by id.
func BySetup(a, b ScheduleSetup) int {
	return cmp.Or(cmp.Compare(a.OffsetSeconds, b.OffsetSeconds), cmp.Compare(a.SetupID, b.SetupID))
}
