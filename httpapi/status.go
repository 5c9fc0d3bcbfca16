package httpapi

import (
	"context"

	"accountledger/domain"
)

type setStatusInput struct {
	Sub
	Command
	JSON[newStatus]
}

// newStatus is the body of PUT /v1/accounts/{sub}/status.
type newStatus struct {
	UserStatus domain.Status `json:"userStatus" enum:"PENDING,VERIFIED,DECLINED,COMBINED,DELETED" doc:"The new status."`
	Reason     string        `json:"reason,omitzero" maxLength:"1024" doc:"Free text."`
}

func (s *server) setStatus(ctx context.Context, c *call, in *setStatusInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.SetStatus{Status: in.value.UserStatus, Reason: in.value.Reason})
}
