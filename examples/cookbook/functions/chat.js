// A run that failed, as the one line that a chat's incoming webhook takes.
export default function (event) {
	const run = event.data.workflow_run;
	return emit({ data: { text: `${run.name} failed on ${run.head_branch}: ${run.html_url}` } });
}
