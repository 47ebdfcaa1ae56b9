package main

import "github.com/spf13/cobra"

// commands is every command of the program, in no particular order: help sorts them.
func commands(p *program) []*cobra.Command {
	return []*cobra.Command{
		serveCommand(p),
		demoCommand(p),
		publishCommand(p),
		tailCommand(p),
		exportCommand(p),
		importCommand(p),
		pullCommand(p),
		listenCommand(p),
		topicsCommand(p),
		subscriptionsCommand(p),
		deadLettersCommand(p),
		replayCommand(p),
		schedulesCommand(p),
		bridgesCommand(p),
		mqttCommand(p),
		keysCommand(p),
		accessCommand(p),
		sourcesCommand(p),
		receiveCommand(p),
		functionsCommand(p),
		invokeCommand(p),
		rulesCommand(p),
		explainCommand(p),
		doctorCommand(p),
		healthCommand(p),
		backupCommand(p),
		restoreCommand(p),
		egressCommand(p),
		webhooksCommand(p),
		benchCommand(p),
		verifyCommand(p),
		versionCommand(p),
	}
}
