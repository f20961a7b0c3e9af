"""An embedded cohort of drawn chest films with known truth and seven simulated teachers; see README.md here."""

PROMPT = (
    "This is a patient's chest DR image <image>. Report consolidation, pleural effusion, pneumonia, pneumothorax and "
    "edema, with side and extent."
)
