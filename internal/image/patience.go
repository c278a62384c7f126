package image

import "context"

type patient struct{}

// Patient marks look-ups that nobody waits for, such as those of all that is in use: they leave room for those that somebody
// does wait for.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, patient{}, true) }

// IsPatient reports whether ctx is of [Patient].
func IsPatient(ctx context.Context) bool { return ctx.Value(patient{}) != nil }
